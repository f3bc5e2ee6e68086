use super::*;

#[test]
fn a_uid_may_stand_in_a_rule() {
    for good in [
        "0b6f4a52-8d0f-4f6b-a9a9-0c8de1b0b7f6",
        "3f0c1e2d4b5a69788796a5b4c3d2e1f0",
        "a",
    ] {
        let uid: PodUid = good.parse().unwrap();
        assert_eq!((uid.as_str(), uid.to_string().as_str()), (good, good));
        assert_eq!(serde_json::to_value(&uid).unwrap(), good);
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
    let longest: PodUid = long[1..].parse().unwrap();
    assert_eq!(longest.as_str(), &long[1..]);
}

#[test]
fn uids_are_ordered_as_their_texts_are() {
    let texts = [
        "", "-", "0", "0-", "00", "9", "A", "a", "a-", "a0", "aa", "b",
    ];
    let uids: Vec<PodUid> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    assert_eq!(uids.len(), texts.len() - 1);
    assert!(uids.is_sorted(), "{uids:?}");
}

#[test]
fn nulls_and_unknown_fields_are_accepted() {
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
fn plain_init_containers_do_not_count() {
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

#[test]
fn long_lists_are_cut_and_invalid_ports_dropped() {
    let many = |element: &str| vec![element; 100_000].join(",");
    let port = r#"{"containerPort":80,"hostPort":7}"#;
    let text = format!(
        r#"{{"containers":[{}],"initContainers":[{{"ports":[{}]}},{{"ports":[{{}},{{"containerPort":-1}},{port}]}}],
            "readinessGates":[{},{{"conditionType":"tkestack.io/portmapping"}}]}}"#,
        many("{}"),
        many(port),
        many("{}"),
    );
    let spec: PodSpec = serde_json::from_str(&text).unwrap();
    assert_eq!(spec.containers.len(), MAX_CONTAINERS);
    assert_eq!(spec.init_containers[0].ports.len(), MAX_PORTS);
    assert_eq!(spec.init_containers[1].ports.len(), 1);
    assert_eq!(spec.readiness_gates.len(), MAX_GATES + 1);
    assert!(spec.has_gate(CONDITION));
    for text in [
        r#"{"containers":{}}"#,
        r#"{"containers":"x"}"#,
        r#"{"containers":[7]}"#,
        r#"{"readinessGates":[null]}"#,
    ] {
        assert!(serde_json::from_str::<PodSpec>(text).is_err(), "{text}");
    }
}

/// Skipped fields may be nested to any depth, fields that are read may not.
#[test]
fn depth_is_bounded() {
    let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let skipped = format!(r#"{{"future":{},"nodeName":"n"}}"#, deep(1_000_000));
    let spec: PodSpec = serde_json::from_str(&skipped).unwrap();
    assert_eq!(spec.node_name, "n");
    let read = format!(r#"{{"containers":{}}}"#, deep(1_000_000));
    assert!(serde_json::from_str::<PodSpec>(&read).is_err());
    let value = serde_json::from_str::<serde_json::Value>(&deep(127));
    assert!(value.is_ok());
    let error = serde_json::from_str::<serde_json::Value>(&deep(128)).unwrap_err();
    assert!(error.to_string().contains("recursion limit"), "{error}");
}

#[test]
fn a_host_ip_that_is_no_address_takes_no_memory() {
    let long = "x".repeat(365);
    for (text, kept) in [
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        (&long, ""),
        ("", ""),
    ] {
        let port = serde_json::json!({ "containerPort": 1, "hostIP": text });
        let port: DeclaredPort = serde_json::from_value(port).unwrap();
        assert_eq!(port.host_ip, kept);
    }
}
