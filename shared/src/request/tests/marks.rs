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
