use proptest::prelude::*;

use super::*;
use crate::contract::MOST_PORTS;

fn entry(host_ip: &str) -> ResultEntry {
    ResultEntry {
        host_port: 40_575,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: host_ip.to_owned(),
        pod_name: "a".to_owned(),
        pod_ip: "10.77.2.2".to_owned(),
    }
}

/// Captured from galaxy v1.0.4's own code.
const GALAXY: &str =
    r#"[{"hostPort":40575,"containerPort":80,"protocol":"TCP","podName":"a","podIP":"10.77.2.2"}]"#;

#[test]
fn a_result_has_the_bytes_that_galaxy_writes() {
    assert_eq!(encode(&[entry("")]), GALAXY);
    assert_eq!(decode(GALAXY).unwrap(), [entry("")]);
    assert_eq!(
        encode(&[entry("10.0.0.11")]),
        r#"[{"hostPort":40575,"containerPort":80,"protocol":"TCP","hostIP":"10.0.0.11","podName":"a","podIP":"10.77.2.2"}]"#
    );
    assert_eq!(encode(&[]), "[]");
}

#[test]
fn blanks_ask_for_every_port() {
    for value in ["", " ", "\t\n\r \x0c"] {
        assert_eq!(classify(value), Value::Request(Ask::All), "{value:?}");
    }
    // white space in Unicode, not in the policy's RE2
    for value in ["\u{a0}", "\u{2003}", "\x0b", "\u{feff}"] {
        assert!(matches!(classify(value), Value::Invalid(_)), "{value:?}");
    }
}

#[test]
fn a_copied_result_is_not_a_request() {
    for value in [
        GALAXY,
        r#"[{"containerPort":80,"hostPort":30000}]"#,
        r#"[{"containerPort":80},{"podIP":"10.0.0.1"}]"#,
        r#"[{"containerPort":80,"podName":""}]"#,
        r#" [ { "\u0068ostPort" : 1 } ] "#,
    ] {
        assert_eq!(classify(value), Value::Result, "{value}");
    }
    let unmapped = r#"[{"containerPort":80,"hostPort":0}]"#;
    assert!(matches!(classify(unmapped), Value::Invalid(_)));
}

/// Strings that the admission policy refuses; the parser must refuse them too.
#[test]
fn what_the_policy_refuses_is_not_a_request() {
    let long = format!("[{}]", vec![r#"{"containerPort":80}"#; 1000].join(","));
    for value in [
        "null",
        "{}",
        "[]",
        "0",
        "true",
        "yes please",
        "\"\"",
        "[null]",
        "[[]]",
        "[[9040]]",
        r#"[{"containerPort":80},[9040,"UDP"]]"#,
        "[80]",
        "[{}]",
        r#"{"containerPort":80}"#,
        r#"[{"containerPort":80}"#,
        r#"[{"containerPort":80},]"#,
        r#"[{"containerPort":80}] [{"containerPort":81}]"#,
        r#"[{"containerPort":0}]"#,
        r#"[{"containerPort":-1}]"#,
        r#"[{"containerPort":65536}]"#,
        r#"[{"containerPort":80.0}]"#,
        r#"[{"containerPort":8e1}]"#,
        r#"[{"containerPort":null}]"#,
        r#"[{"containerPort":"WEB"}]"#,
        r#"[{"containerPort":""}]"#,
        r#"[{"containerPort":"a-name-longer-than-15"}]"#,
        r#"[{"containerPort":80,"containerPort":81}]"#,
        r#"[{"containerPort":80,"protocol":"tcp"}]"#,
        r#"[{"containerPort":80,"protocol":null}]"#,
        r#"[{"containerPort":80,"hostIP":"node1"}]"#,
        r#"[{"containerPort":80,"hostIP":""}]"#,
        r#"[{"containerPort":80,"hostIP":"fe80::1%eth0"}]"#,
        r#"[{"containerPort":80,"HOSTPORT":1}]"#,
        r#"[{"containerPort":80,"ho\u017ftPort":1}]"#,
        r#"[{"containerPort":"w\u0065b"}]"#,
        r#"[{"containerPort":80,"extra":{"hostPort":1}}]"#,
        "\u{feff}[{\"containerPort\":80}]",
        long.as_str(),
    ] {
        assert!(matches!(classify(value), Value::Invalid(_)), "{value:.80}");
    }
}

#[test]
fn requests_are_read_whole() {
    let value = r#"[{"containerPort":9040},{"containerPort":"web"},
        {"hostIP":"10.0.0.11","protocol":"UDP","containerPort":53}]"#;
    let Value::Request(Ask::These(ports)) = classify(value) else {
        panic!("{value}")
    };
    assert_eq!(ports.len(), 3);
    assert_eq!(ports[2].protocol, Some(Protocol::Udp));
    assert_eq!(ports[2].host_ip, Some("10.0.0.11".parse().unwrap()));
}

proptest! {
    #[test]
    fn a_result_is_decoded_as_it_was_encoded(
        ports in prop::collection::vec((1u16.., 1u16.., 0usize..3, "[a-z0-9.-]{1,20}"), 0..20)
    ) {
        let entries: Vec<ResultEntry> = ports.into_iter().map(|(host_port, container_port, p, name)| {
            ResultEntry { host_port, container_port, protocol: Protocol::ALL[p], pod_name: name, ..entry("") }
        }).collect();
        prop_assert_eq!(decode(&encode(&entries)).unwrap(), entries);
    }

    #[test]
    fn any_text_can_be_read(text in any::<String>(), json in r#"[\[\]{}:,"a-zA-Z0-9 .\\-]{0,200}"#) {
        let _ = (classify(&text), classify(&json), decode(&text), decode(&json));
    }
}

#[test]
fn the_longest_result_is_read() {
    let long = ResultEntry {
        host_port: u16::MAX,
        container_port: u16::MAX,
        protocol: Protocol::Sctp,
        host_ip: "2001:db8:1111:2222:3333:4444:5555:6666".to_owned(),
        pod_name: "p".repeat(253),
        pod_ip: "2001:db8:1111:2222:3333:4444:5555:6666".to_owned(),
    };
    let most = usize::try_from(MOST_PORTS).unwrap();
    let result = encode(&vec![long; most]);
    assert_eq!(decode(&result).unwrap().len(), most);
    assert_eq!(classify(&result), Value::Result);
}

#[test]
fn a_value_longer_than_any_result_is_not_parsed() {
    let entry =
        r#"{"hostPort":1,"containerPort":80,"protocol":"TCP","podName":"p","podIP":"1.2.3.4"}"#;
    let list = |entries: usize| format!("[{}]", vec![entry; entries].join(","));
    assert_eq!(classify(&list(700)), Value::Result);
    let long = list(900);
    assert_eq!(
        classify(&long),
        Value::Invalid(RequestError::TooLong(long.len()))
    );
    let deep = format!("{}{}", "[{\"a\":".repeat(5_000), "}]".repeat(5_000));
    assert!(matches!(classify(&deep), Value::Invalid(_)));
}
