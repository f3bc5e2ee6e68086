//! The request mark says what a result was asked for with.

use super::*;

/// Two containers declare 80 for different addresses. A name means one of them, and the mark too.
#[test]
fn a_mark_names_one_of_two_ports_of_the_same_number() {
    let spec: PodSpec = serde_json::from_str(
        r#"{"containers":[{"ports":[{"containerPort":80,"name":"web"}]},
                          {"ports":[{"containerPort":80,"name":"in","hostIP":"10.0.0.1"}]}]}"#,
    )
    .unwrap();
    for name in ["web", "in"] {
        let ask = format!(r#"[{{"containerPort":"{name}"}}]"#);
        let request = PortRequest::resolve(&ask, &spec, 64).unwrap();
        let again = PortRequest::from_mark(&request.to_mark(), &spec, 64).unwrap();
        assert_eq!(again, request, "{name}");
    }
}

#[test]
fn the_longest_mark_is_read() {
    let most = usize::try_from(crate::contract::MOST_PORTS).unwrap();
    let port = |n: usize| {
        format!(
            r#"{{"name":"p{n:0>14}","containerPort":{},"protocol":"SCTP","hostIP":"2001:db8:1111:2222:3333:4444:5555:6666"}}"#,
            65_000 + n
        )
    };
    let ports: Vec<String> = (0..most).map(port).collect();
    let spec = format!(r#"{{"containers":[{{"ports":[{}]}}]}}"#, ports.join(","));
    let spec: PodSpec = serde_json::from_str(&spec).unwrap();
    let request = PortRequest::resolve("", &spec, most).unwrap();
    let mark = request.to_mark();
    assert_eq!(PortRequest::from_mark(&mark, &spec, most), Ok(request));
}
