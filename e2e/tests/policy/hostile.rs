//! Values that a JSON parser could read as a result, and unusual requests that are valid.

/// Each must be refused. Go's `encoding/json`, with which other programs read the annotation, accepts
/// escapes, other letter case and the long s as the plain key.
pub(crate) const HOSTILE: [&str; 31] = [
    r#"[{"\u0068ostPort":1,"containerPort":9040}]"#,
    r#"[{"HOSTPORT":1,"containerPort":9040}]"#,
    "[{\"ho\u{17f}tPort\":1,\"containerPort\":9040}]",
    r#"[{"containerPort":9040,"hostPort":1}]"#,
    r#"[{"containerPort":9040 , "hostPort" : 1}]"#,
    r#"[{"containerPort":9040,"podIP":"1.1.1.1"}]"#,
    r#"[{"containerPort":9040},{"podName":"x","containerPort":1}]"#,
    r#"[{"containerPort":9040}] [{"hostPort":1}]"#,
    "[{\"containerPort\":9040}]\n[{\"hostPort\":1}]",
    r#"{"containerPort":9040}"#,
    r#"[[{"containerPort":9040}]]"#,
    r#"[{"containerPort":"a\"b"}]"#,
    r#"[{"containerPort":"a\u0022,\u0022hostPort\u0022:1"}]"#,
    r#"[{"containerPort":9040,"hostIP":"::1\",\"hostPort\":1"}]"#,
    r#"[{"containerPort":9040,"containerPort":9041}]"#,
    r#"[{"protocol":"UDP"}]"#,
    "[]",
    "null",
    r#""""#,
    r#"[{"containerPort":0}]"#,
    r#"[{"containerPort":-1}]"#,
    r#"[{"containerPort":1e3}]"#,
    r#"[{"containerPort":123456}]"#,
    r#"[{"containerPort":9040,"protocol":"udp"}]"#,
    r#"[{"containerPort":9040},]"#,
    "\u{feff}[{\"containerPort\":9040}]",
    "[{\"containerPort\":9040}]\0",
    "\u{a0}",
    "[{\"containerPort\":9040}]\n# {\"hostPort\":1}",
    "[{\"containerPort\":\u{ff19}}]",
    "[{\"containerPort\":9040,\"hostIP\":\"10.0.0.1\n\"}]",
];

/// Each must be refused: it is longer than the policy accepts.
pub(crate) fn long() -> [String; 2] {
    let entries = vec![r#"{"containerPort":9040,"protocol":"UDP"}"#; 600];
    [format!("[{}]", entries.join(",")), "x".repeat(200_000)]
}

/// To be taken as requests.
pub(crate) const GOOD: [&str; 6] = [
    "",
    "  ",
    "\n",
    r#"[{"containerPort":9040}, {"containerPort":"web"}, {"containerPort":53,"protocol":"UDP","hostIP":"10.0.0.11"}]"#,
    r#"[ { "protocol" : "SCTP" , "containerPort" : 9 , "hostIP" : "fd00::1" } ]"#,
    "[\n{\"hostIP\":\"1.2.3.4\",\"protocol\":\"UDP\",\"containerPort\":\"dns\"}\n]\n",
];

/// The largest request of a pod, in its longest form.
pub(crate) fn sixty_four() -> String {
    let entry = |n| format!(r#"{{"containerPort":{n},"protocol":"UDP","hostIP":"2001:db8::{n}"}}"#);
    format!("[{}]", (1..=64).map(entry).collect::<Vec<_>>().join(","))
}
