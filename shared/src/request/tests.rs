use proptest::prelude::*;

use super::*;

mod many;
mod marks;

const MAX: usize = 64;

fn spec() -> PodSpec {
    serde_json::from_str(
        r#"{"containers":[
              {"ports":[{"name":"web","containerPort":9040},{"containerPort":53,"protocol":"UDP"},
                        {"containerPort":53,"protocol":"TCP"}]},
              {"ports":[{"name":"fixed","containerPort":80,"hostPort":8080},
                        {"containerPort":9040,"protocol":"TCP"}]}],
            "initContainers":[{"ports":[{"containerPort":1}]},
              {"restartPolicy":"Always","ports":[{"name":"side","containerPort":7000}]}]}"#,
    )
    .unwrap()
}

fn resolve(value: &str) -> Vec<String> {
    let request = PortRequest::resolve(value, &spec(), MAX).unwrap();
    request.ports.iter().map(brief).collect()
}

fn brief(port: &RequestedPort) -> String {
    let ip = port.host_ip.map(|ip| format!("@{ip}")).unwrap_or_default();
    let fixed = port
        .static_host_port
        .map(|port| format!("={port}"))
        .unwrap_or_default();
    format!("{}/{}{ip}{fixed}", port.container_port, port.protocol)
}

fn refusal(value: &str) -> String {
    PortRequest::resolve(value, &spec(), MAX)
        .unwrap_err()
        .to_string()
}

#[test]
fn an_empty_value_means_every_declared_port_in_spec_order() {
    assert_eq!(
        resolve(""),
        ["9040/TCP", "53/UDP", "53/TCP", "80/TCP=8080", "7000/TCP"]
    );
}

#[test]
fn a_copied_result_means_the_same_as_empty() {
    let copied =
        r#"[{"hostPort":1,"containerPort":2,"protocol":"TCP","podName":"x","podIP":"10.0.0.1"}]"#;
    assert_eq!(resolve(copied), resolve(""));
}

#[test]
fn a_request_is_answered_in_spec_order_with_undeclared_ports_last() {
    assert_eq!(
        resolve(r#"[{"containerPort":8000},{"containerPort":"side"},{"containerPort":9040}]"#),
        ["9040/TCP", "7000/TCP", "8000/TCP"]
    );
}

#[test]
fn a_number_without_protocol_means_every_declared_port_of_it() {
    assert_eq!(resolve(r#"[{"containerPort":53}]"#), ["53/UDP", "53/TCP"]);
    assert_eq!(
        resolve(r#"[{"containerPort":53,"protocol":"UDP"}]"#),
        ["53/UDP"]
    );
    assert_eq!(
        resolve(r#"[{"containerPort":53,"protocol":"SCTP"}]"#),
        ["53/SCTP"]
    );
    assert_eq!(resolve(r#"[{"containerPort":54}]"#), ["54/TCP"]);
}

#[test]
fn a_port_is_listed_once_however_often_it_is_asked_for() {
    assert_eq!(
        resolve(r#"[{"containerPort":"web"},{"containerPort":9040}]"#),
        ["9040/TCP"]
    );
    assert_eq!(
        resolve(r#"[{"containerPort":5},{"containerPort":5,"protocol":"TCP"}]"#),
        ["5/TCP"]
    );
}

#[test]
fn a_host_ip_restricts() {
    let asked = r#"[{"containerPort":9040,"hostIP":"10.0.0.11"},{"containerPort":5,"hostIP":"::ffff:10.0.0.12"}]"#;
    assert_eq!(resolve(asked), ["9040/TCP@10.0.0.11", "5/TCP@10.0.0.12"]);
    assert_eq!(
        resolve(r#"[{"containerPort":5,"hostIP":"0.0.0.0"}]"#),
        ["5/TCP"]
    );
}

#[test]
fn a_static_host_port_stays_what_it_is() {
    assert_eq!(
        resolve(r#"[{"containerPort":"fixed","hostIP":"10.0.0.11"}]"#),
        ["80/TCP=8080"]
    );
}

#[test]
fn a_pod_on_the_host_network_has_static_host_ports() {
    let spec = PodSpec {
        host_network: true,
        ..spec()
    };
    let request = PortRequest::resolve(
        r#"[{"containerPort":53,"protocol":"UDP"},{"containerPort":5}]"#,
        &spec,
        MAX,
    );
    let request = request.unwrap();
    assert_eq!(
        request.ports.iter().map(brief).collect::<Vec<_>>(),
        ["53/UDP=53", "5/TCP=5"]
    );
}

#[test]
fn a_pod_without_ports_asks_for_nothing() {
    assert!(
        PortRequest::resolve("", &PodSpec::default(), MAX)
            .unwrap()
            .ports
            .is_empty()
    );
}

#[test]
fn a_refusal_quotes_the_value_explains_and_shows_a_valid_one() {
    let cases = [
        (
            r#"[{"containerPort":"nope"}]"#,
            r#"no container of the pod declares a port named "nope""#,
        ),
        (
            r#"[{"containerPort":70000}]"#,
            "70000 is not a port: ports are 1-65535",
        ),
        (
            r#"[{"containerPort":80,"hostIP":"node1"}]"#,
            r#"hostIP "node1" is not an IP address"#,
        ),
        (
            r#"[{"containerPort":80,"hostPrt":1}]"#,
            r#"entry 1: the key "hostPrt" is unknown; known are containerPort, protocol, hostIP"#,
        ),
        (
            r#"[{"containerPort":80,"protocol":"tcp"}]"#,
            r#"entry 1: protocol "tcp" is not "TCP", "UDP" or "SCTP""#,
        ),
        ("[]", "it lists no port"),
        (
            "yes please",
            "it is neither empty nor a list in square brackets",
        ),
        (
            r#"[{"containerPort":5,"hostIP":"10.0.0.1"},{"containerPort":5,"hostIP":"10.0.0.2"}]"#,
            "port 5/TCP is asked for with two different hostIPs",
        ),
        (
            r#"[{"containerPort":9040,"hostIP":"10.0.0.1"},{"containerPort":"web","hostIP":"10.0.0.2"}]"#,
            "port 9040/TCP is asked for with two different hostIPs",
        ),
    ];
    for (value, why) in cases {
        let message = refusal(value);
        assert!(message.contains(why), "{message}");
        assert!(message.contains(value), "{message}");
        assert!(
            message.contains(r#"[{"containerPort":9040,"protocol":"TCP"}]"#),
            "{message}"
        );
    }
}

#[test]
fn refusals_are_in_the_users_terms() {
    let cases = [
        ("true", "it is a boolean, not a list in square brackets"),
        ("8080", "it is a number, not a list in square brackets"),
        (
            "{\"containerPort\":80}",
            "it is an object, not a list in square brackets",
        ),
        (
            "[{\"containerPort\":80]",
            "it is not valid JSON: line 1, column 21",
        ),
        (
            "[80]",
            "entry 1: it is a number, not an object such as {\"containerPort\":9040}",
        ),
        (
            "[{\"containerPort\":80},{}]",
            "entry 2: containerPort is missing",
        ),
        (
            "[{\"containerPort\":null}]",
            "entry 1: containerPort is null, not a port number",
        ),
        (
            "[{\"containerPort\":1.5}]",
            "entry 1: containerPort 1.5 is not a port",
        ),
        (
            "[{\"containerPort\":-1}]",
            "entry 1: containerPort -1 is not a port",
        ),
        (
            "[{\"containerPort\":\"WEB\"}]",
            "entry 1: containerPort \"WEB\" is not a port name",
        ),
        (
            "[{\"containerPort\":80,\"protocol\":6}]",
            "entry 1: protocol is a number, not",
        ),
        (
            "[{\"containerPort\":80,\"hostIP\":[]}]",
            "entry 1: hostIP is a list, not an IP address",
        ),
        (
            "[{\"containerPort\":80,\"containerPort\":81}]",
            "an entry has the same key twice",
        ),
        (
            "[{\"containerPort\":\"web\",\"protocol\":\"UDP\"}]",
            "declares a UDP port named \"web\"",
        ),
    ];
    for (value, expected) in cases {
        let message = refusal(value);
        assert!(message.contains(expected), "{message}");
        for library in [
            "expected ",
            "invalid type",
            "invalid value",
            "unknown field",
            "variant",
        ] {
            assert!(!message.contains(library), "{message}");
        }
    }
}

/// The last value in a message, which must work for the pod.
fn example(message: &str) -> &str {
    let (_, advice) = message.rsplit_once("; write ").expect("advice");
    let begin = advice.find("[{").expect("an example");
    let end = advice.find("}]").expect("an example");
    &advice[begin..end + 2]
}

#[test]
fn the_example_in_a_refusal_works_for_the_pod() {
    let specs = [
        "{}",
        r#"{"containers":[{"ports":[{"containerPort":53,"protocol":"UDP"}]}]}"#,
        r#"{"containers":[{"ports":[{"containerPort":80,"hostIP":"10.0.0.1"},{"containerPort":80,"hostIP":"10.0.0.2"}]}]}"#,
        r#"{"containers":[{"ports":[{"containerPort":9040,"hostIP":"10.0.0.1"},{"containerPort":9040,"hostIP":"10.0.0.2"}]}]}"#,
    ];
    for text in specs {
        let spec: PodSpec = serde_json::from_str(text).unwrap();
        for max in [1, MAX] {
            let message = PortRequest::resolve("yes", &spec, max)
                .unwrap_err()
                .to_string();
            let works = PortRequest::resolve(example(&message), &spec, max);
            assert_eq!(works.map(|it| it.ports.len()), Ok(1), "{text}: {message}");
            let all = PortRequest::resolve("", &spec, max);
            let all = all.is_ok_and(|it| !it.ports.is_empty());
            assert_eq!(message.contains("write \"\" for"), all, "{text}: {message}");
        }
    }
}

#[test]
fn too_many_declared_ports_do_not_get_the_advice_to_ask_for_all() {
    let container = crate::pod::Container {
        ports: (1..=65)
            .map(|container_port| DeclaredPort {
                container_port,
                ..DeclaredPort::default()
            })
            .collect(),
        ..Default::default()
    };
    let spec = PodSpec {
        containers: vec![container],
        ..PodSpec::default()
    };
    let message = PortRequest::resolve("", &spec, MAX)
        .unwrap_err()
        .to_string();
    assert!(message.contains("it asks for 65 ports"), "{message}");
    assert!(!message.contains("write \"\""), "{message}");
    assert_eq!(
        example(&message),
        r#"[{"containerPort":1,"protocol":"TCP"}]"#
    );
}

#[test]
fn refusals_stay_short_and_on_one_line() {
    let message = refusal(&format!("{}\n{}", "x".repeat(150), "y".repeat(5000)));
    assert!(message.len() < 700 && !message.contains('\n'), "{message}");
}

#[test]
fn too_many_ports_are_refused_with_the_numbers() {
    let ports: Vec<String> = (100..=164)
        .map(|n| format!(r#"{{"containerPort":{n}}}"#))
        .collect();
    let message = refusal(&format!("[{}]", ports.join(",")));
    assert!(
        message.contains("asks for 65 ports, more than the 64"),
        "{message}"
    );
}

#[test]
fn a_request_survives_its_mark() {
    for value in [
        "",
        r#"[{"containerPort":"web","hostIP":"10.0.0.11"},{"containerPort":6}]"#,
    ] {
        let request = PortRequest::resolve(value, &spec(), MAX).unwrap();
        assert_eq!(
            PortRequest::from_mark(&request.to_mark(), &spec(), MAX).unwrap(),
            request
        );
    }
    let request = PortRequest::resolve(r#"[{"containerPort":"web"}]"#, &spec(), MAX).unwrap();
    assert_eq!(
        request.to_mark(),
        r#"[{"containerPort":9040,"protocol":"TCP","name":"web"}]"#
    );
}

#[test]
fn a_forged_mark_asks_for_nothing_an_annotation_could_not() {
    let many: Vec<String> = (1..=65)
        .map(|n| format!(r#"{{"containerPort":{n},"protocol":"TCP"}}"#))
        .collect();
    for mark in [
        format!("[{}]", many.join(",")),
        r#"[{"containerPort":80,"protocol":"TCP","hostPort":22}]"#.to_owned(),
        "nonsense".to_owned(),
        format!("[{}]", " ".repeat(20_000)),
    ] {
        assert!(
            PortRequest::from_mark(&mark, &spec(), MAX).is_err(),
            "{mark:.60}"
        );
    }
}

proptest! {
    #[test]
    fn every_spec_and_value_can_be_resolved(
        value in r#"(\[\{"containerPort":[0-9]{1,6}(,"protocol":"(TCP|UDP|XXX)")?\}\])?"#,
        ports in prop::collection::vec((any::<i64>(), any::<i64>(), "(TCP|UDP|SCTP|x|)", "[a-z:.0-9]{0,12}"), 0..8),
        host_network: bool,
    ) {
        let ports = ports.into_iter().map(|(container_port, host_port, protocol, text)| DeclaredPort {
            container_port, host_port, protocol, host_ip: text.clone(), name: text,
        }).collect();
        let container = crate::pod::Container { ports, ..Default::default() };
        let spec = PodSpec { host_network, containers: vec![container], ..PodSpec::default() };
        if let Ok(request) = PortRequest::resolve(&value, &spec, MAX) {
            let mut seen = std::collections::BTreeSet::new();
            for port in &request.ports {
                prop_assert!(seen.insert((port.container_port, port.protocol)));
            }
            let again = PortRequest::from_mark(&request.to_mark(), &spec, MAX);
            if !request.ports.is_empty() {
                prop_assert_eq!(again.map(|r| r.ports.len()), Ok(request.ports.len()));
            }
        }
    }
}
