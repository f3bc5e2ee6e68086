use serde_json::json;

use super::{Annotations, Pod};

fn read(text: &str) -> Result<Pod, serde_json::Error> {
    serde_json::from_str(text)
}

#[test]
fn absent_and_null_fields_are_empty() {
    for text in [
        "{}",
        r#"{"metadata":null,"spec":null}"#,
        r#"{"metadata":{"name":null,"annotations":null},"spec":{"containers":null}}"#,
        r#"{"metadata":{"annotations":{}},"spec":{}}"#,
    ] {
        assert_eq!(read(text).unwrap(), Pod::default(), "{text}");
    }
}

#[test]
fn keeps_our_annotations_and_skips_others() {
    let text = json!({
        "kind": "Pod",
        "future": [{}],
        "metadata": {
            "generateName": "hello-",
            "annotations": {
                "tkestack.io/portmapping": "",
                "tkestack.io/portmapping-request": "mark",
                "host-port.tkestack.io/80-tcp": "1",
                "tkestack.io/portmappings": "another key",
                "a": "b",
            },
        },
        "spec": { "volumes": [{}], "containers": [{ "ports": [{ "containerPort": 80 }] }] },
    });
    let pod = read(&text.to_string()).unwrap();
    let expected = Annotations {
        request: Some(String::new()),
        mark: Some("mark".to_owned()),
        per_port: ["host-port.tkestack.io/80-tcp".to_owned()].into(),
    };
    assert_eq!(pod.metadata.annotations, expected);
    assert_eq!(pod.metadata.generate_name, "hello-");
    assert_eq!(pod.spec.containers[0].ports[0].container_port, 80);
}

#[test]
fn an_escaped_key_is_the_key_it_stands_for() {
    let pod =
        read(r#"{"metadata":{"annotations":{"tkestack.io\/\u0070ortmapping":"x"}}}"#).unwrap();
    assert_eq!(pod.metadata.annotations.request.as_deref(), Some("x"));
}

#[test]
fn a_duplicate_key_overrides_and_null_is_empty_as_in_go() {
    let text = r#"{"metadata":{"annotations":{"tkestack.io/portmapping":"x","tkestack.io/portmapping":null}}}"#;
    assert_eq!(
        read(text).unwrap().metadata.annotations.request.as_deref(),
        Some("")
    );
}

#[test]
fn another_schema_is_an_error() {
    for text in [
        "7",
        r#"{"metadata":"x"}"#,
        r#"{"metadata":{"annotations":"x"}}"#,
        r#"{"metadata":{"annotations":{"tkestack.io/portmapping":7}}}"#,
        r#"{"spec":{"containers":{}}}"#,
        r#"{"spec":{"containers":[{"ports":[{"containerPort":"80"}]}]}}"#,
    ] {
        assert!(read(text).is_err(), "{text}");
    }
}

#[test]
fn thousands_of_per_port_annotations_are_an_error() {
    let many = |count: usize| {
        let keys = (0..count).map(|n| format!(r#""host-port.tkestack.io/{n}":"""#));
        let keys: Vec<_> = keys.collect();
        read(&format!(
            r#"{{"metadata":{{"annotations":{{{}}}}}}}"#,
            keys.join(",")
        ))
    };
    assert_eq!(
        many(1024).unwrap().metadata.annotations.per_port.len(),
        1024
    );
    assert!(many(1025).is_err());
}
