use super::*;

#[test]
fn a_uid_may_stand_in_a_rule() {
    for good in [
        "0b6f4a52-8d0f-4f6b-a9a9-0c8de1b0b7f6",
        "3f0c1e2d4b5a69788796a5b4c3d2e1f0",
        "a",
    ] {
        assert!(good.parse::<PodUid>().is_ok(), "{good:?}");
    }
    let long = "a".repeat(64);
    for bad in [
        "",
        "a b",
        "a\n-A PREROUTING -j ACCEPT",
        "a\"",
        "ä",
        long.as_str(),
    ] {
        assert!(bad.parse::<PodUid>().is_err(), "{bad:?}");
    }
}

#[test]
fn nulls_and_unknown_fields_are_no_obstacle() {
    let spec: PodSpec = serde_json::from_str(
        r#"{"hostNetwork":null,"initContainers":null,"containers":[{"name":"c","image":"i",
            "ports":null},{"ports":[{"containerPort":80,"protocol":null,"future":{"x":[1]}}]}],
            "volumes":[{}],"readinessGates":[{"conditionType":"a/b"}]}"#,
    )
    .unwrap();
    assert_eq!(spec.containers.len(), 2);
    assert_eq!(spec.containers[1].ports[0].container_port, 80);
    assert!(spec.has_gate("a/b") && !spec.has_gate("a"));
}

#[test]
fn only_containers_that_last_count() {
    let spec: PodSpec = serde_json::from_str(
        r#"{"containers":[{"ports":[{"containerPort":1}]}],
            "initContainers":[{"ports":[{"containerPort":2}]},
                              {"restartPolicy":"Always","ports":[{"containerPort":3}]}]}"#,
    )
    .unwrap();
    let ports: Vec<i64> = spec
        .lasting_containers()
        .flat_map(|c| &c.ports)
        .map(|p| p.container_port)
        .collect();
    assert_eq!(ports, [1, 3]);
}
