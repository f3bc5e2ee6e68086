//! The bytes of version 1: keepers and enforcers of earlier releases read and write exactly these.

use portmapping_shared::{HostPort, Protocol};

use super::*;

fn port(protocol: Protocol, number: u16) -> PortKey {
    (protocol, HostPort::new(number).unwrap())
}

/// The message is written as this JSON, and this JSON is read as the message.
fn assert_json<T>(message: &T, json: &str)
where
    T: Serialize + DeserializeOwned + PartialEq + fmt::Debug,
{
    let frame = encode(message).unwrap();
    let length = u32::try_from(json.len()).unwrap();
    assert_eq!(frame[..4], length.to_be_bytes());
    assert_eq!(String::from_utf8(frame[4..].to_vec()).unwrap(), json);
    assert_eq!(decode::<T>(json.as_bytes()).unwrap(), *message);
}

#[test]
fn requests_keep_the_bytes_of_version_1() {
    let ports = vec![port(Protocol::Tcp, 20000), port(Protocol::Sctp, 20001)];
    for (request, json) in [
        (
            Request::Hold(ports.clone()),
            r#"{"v":1,"request":{"hold":[["TCP",20000],["SCTP",20001]]}}"#,
        ),
        (
            Request::Release(vec![port(Protocol::Udp, 1)]),
            r#"{"v":1,"request":{"release":[["UDP",1]]}}"#,
        ),
        (
            Request::List { after: None },
            r#"{"v":1,"request":{"list":{"after":null}}}"#,
        ),
        (
            Request::List {
                after: Some(ports[0]),
            },
            r#"{"v":1,"request":{"list":{"after":["TCP",20000]}}}"#,
        ),
        (Request::Watch, r#"{"v":1,"request":"watch"}"#),
        (Request::TakeOver, r#"{"v":1,"request":"take_over"}"#),
    ] {
        assert_json(
            &Envelope {
                v: VERSION,
                request,
            },
            json,
        );
    }
}

#[test]
fn replies_keep_the_bytes_of_version_1() {
    let outcomes = vec![
        HoldOutcome::Held,
        HoldOutcome::HeldWithoutSocket,
        HoldOutcome::Refused(Errno(98)),
    ];
    for (reply, json) in [
        (
            Reply::Hello { v: 1, instance: 7 },
            r#"{"hello":{"v":1,"instance":7}}"#,
        ),
        (
            Reply::Holding(outcomes),
            r#"{"holding":["held","held_without_socket",{"refused":98}]}"#,
        ),
        (Reply::Released(2), r#"{"released":2}"#),
        (
            Reply::Held {
                ports: vec![port(Protocol::Tcp, 20000)],
                more: true,
            },
            r#"{"held":{"ports":[["TCP",20000]],"more":true}}"#,
        ),
        (Reply::Role(KeeperRole::Active), r#"{"duty":"active"}"#),
        (Reply::Role(KeeperRole::Frozen), r#"{"duty":"frozen"}"#),
        (Reply::Role(KeeperRole::Retired), r#"{"duty":"retired"}"#),
        (Reply::Retired, r#""retired""#),
        (Reply::Error("no".into()), r#"{"error":"no"}"#),
    ] {
        assert_json(&reply, json);
    }
}
