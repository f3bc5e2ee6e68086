//! What keepers of earlier versions read and write.

use super::*;

#[test]
fn only_a_peer_that_asks_for_them_gets_details() {
    let old = Old::new();
    let ask = |details| {
        let (peer, thread) = old.answer();
        send(&peer, &status(VERSION, details));
        thread.join().unwrap();
        receive(&peer).0
    };
    while ask(true) == Message::Active {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask(true), Message::Unattended);
    assert_eq!(ask(false), Message::Active);
    let (watcher, _enforcer) = std::os::unix::net::UnixStream::pair().unwrap();
    old.table.watch(1, watcher);
    assert_eq!(ask(true), Message::Active);
    old.table.end();
    assert_eq!(ask(true), Message::Ending);
    assert_eq!(ask(false), Message::Active);
}

#[test]
fn messages_keep_the_bytes_of_version_1() {
    let port = |protocol| (protocol, HostPort::new(20000).unwrap());
    let batch = Message::Batch {
        held: vec![port(Protocol::Tcp)],
        without_socket: vec![port(Protocol::Sctp)],
    };
    let offer = Message::Offer {
        ports: 2,
        sockets: 1,
        polls: false,
    };
    for (message, json) in [
        (Message::Take { v: 1 }, r#"{"take":{"v":1}}"#),
        (status(1, false), r#"{"status":{"v":1}}"#),
        (Message::Active, r#""active""#),
        (Message::Retired, r#""retired""#),
        (Message::Busy, r#""busy""#),
        (offer, r#"{"offer":{"ports":2,"sockets":1}}"#),
        (
            batch,
            r#"{"batch":{"held":[["TCP",20000]],"noted":[["SCTP",20000]]}}"#,
        ),
        (Message::Got, r#""got""#),
        (Message::End, r#""end""#),
        (Message::Confirm, r#""confirm""#),
        (Message::Done, r#""done""#),
        (Message::Error("no".into()), r#"{"error":"no"}"#),
    ] {
        assert_eq!(serde_json::to_string(&message).unwrap(), json);
        assert_eq!(serde_json::from_str::<Message>(json).unwrap(), message);
    }
}
