//! Thousands of declared ports.

use super::*;

/// A user can have a request resolved again and again, on the node's only thread.
#[test]
fn thousands_of_declared_ports_and_hundreds_of_entries_are_resolved_in_one_pass() {
    let twin = |index: u16, host_ip: &str| DeclaredPort {
        name: format!("p{index}"),
        container_port: i64::from(index),
        host_ip: host_ip.to_owned(),
        ..DeclaredPort::default()
    };
    // no example can be asked for by number either
    let examples = (1..=8).chain(9_040..=9_049);
    let twins = examples.flat_map(|it| [twin(it, "10.0.0.1"), twin(it, "10.0.0.2")]);
    let ports: Vec<_> = twins
        .chain((20_000..24_000).map(|it| twin(it, "")))
        .collect();
    let spec = PodSpec {
        containers: vec![crate::pod::Container {
            ports,
            ..Default::default()
        }],
        ..PodSpec::default()
    };
    let entries = (23_400..24_000).map(|it| format!(r#"{{"containerPort":"p{it}"}}"#));
    let value = format!("[{}]", entries.collect::<Vec<_>>().join(","));
    let start = std::time::Instant::now();
    for _ in 0..300 {
        let refused = PortRequest::resolve(&value, &spec, MAX).unwrap_err();
        assert!(refused.to_string().contains("600"), "{refused}");
    }
    // 300 times each entry against each port takes minutes
    let took = start.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}
