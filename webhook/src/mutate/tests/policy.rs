//! Compares the webhook's parser with the expression of the admission policy in the manifest, on the
//! same values. The API server applies the policy after the webhook: if the parser accepted more,
//! the policy would refuse pods that the webhook has admitted.

use std::collections::HashMap;

use portmapping_shared::annotation::{Value, classify};
use proptest::prelude::*;
use regex::Regex;

use super::{CHOSEN_HOST_PORT, COPIED_RESULT, RESULT};

const MANIFEST: &str = include_str!("../../../../manifests/base/policy-users.yaml");

const TEMPLATES: &str = include_str!("../../../../manifests/base/policy-templates.yaml");

/// The policy's variable `asks`: its size limit and its expression, in the common syntax of RE2 and the
/// regex crate.
struct Policy {
    max: usize,
    shape: Regex,
}

impl Policy {
    fn read() -> Self {
        let mut known = HashMap::new();
        for name in ["port", "other", "entry"] {
            let text = expression(name);
            known.insert(name, concatenated(text, &known));
        }
        let asks = &MANIFEST[MANIFEST.find("- name: asks").expect("asks")..];
        let asks = &asks[..asks.find("validations:").expect("what follows")];
        let (size, shape) = asks.split_once("&&").expect("two halves");
        let max = size.split("<=").nth(1).expect("a limit").trim();
        let shape = shape.split_once(".matches(").expect("an expression").1;
        let shape = concatenated(shape.trim().trim_end_matches(')'), &known);
        assert!(shape.starts_with('^') && shape.ends_with('$'), "{shape}");
        // in RE2, \s is ASCII and $ is the end of the text; these flags give the same here
        let shape = format!("(?-u:{})", shape.replace('$', r"\z"));
        Self {
            max: max.parse().expect("a number"),
            shape: Regex::new(&shape.replace(r"\s", r"[\t\n\x0c\r ]")).expect("an expression"),
        }
    }

    fn admits(&self, value: &str) -> bool {
        // CEL counts characters
        value.chars().count() <= self.max && self.shape.is_match(value)
    }
}

/// The expression of a variable whose expression is one line.
fn expression(name: &str) -> &'static str {
    let mut lines = MANIFEST.lines();
    let head = format!("- name: {name}");
    lines.find(|line| line.trim() == head).expect("a variable");
    let line = lines.next().expect("its expression").trim();
    line.strip_prefix("expression: ").expect("its expression")
}

/// `r'...' + variables.x + '...'` as one text.
fn concatenated(mut text: &str, known: &HashMap<&str, String>) -> String {
    let mut joined = String::new();
    loop {
        text = text.trim_start_matches([' ', '+', '\n']);
        if text.is_empty() {
            return joined;
        }
        if let Some(rest) = text.strip_prefix("variables.") {
            let end = rest.find(' ').unwrap_or(rest.len());
            joined.push_str(&known[&rest[..end]]);
            text = &rest[end..];
        } else {
            let rest = text.strip_prefix('r').unwrap_or(text);
            let rest = rest.strip_prefix('\'').expect("a literal");
            let (literal, rest) = rest.split_once('\'').expect("its end");
            joined.push_str(literal);
            text = rest;
        }
    }
}

fn parses(value: &str) -> bool {
    matches!(classify(value), Value::Request(_))
}

fn good() -> Vec<String> {
    let entry = r#"{"containerPort":9040,"protocol":"TCP","hostIP":"2001:db8::1"}"#;
    let mut all: Vec<String> = [
        "",
        " ",
        "\n\t",
        r#"[{"containerPort":9040}]"#,
        r#"[{"containerPort":"web"}]"#,
        r#"[{"containerPort":9040},{"containerPort":"web"},{"containerPort":53,"protocol":"UDP","hostIP":"10.0.0.11"}]"#,
        " [ { \"protocol\" : \"SCTP\" ,\n \"containerPort\" : 1 } , { \"containerPort\" : 65535 } ] ",
        r#"[{"hostIP":"::","containerPort":1,"protocol":"UDP"}]"#,
    ]
    .map(str::to_owned)
    .into();
    all.push(format!("[{}]", vec![entry; 64].join(",")));
    all
}

/// Values that one of the two readers could misread.
fn hostile() -> Vec<String> {
    let entry = |inner: &str| format!(r#"[{{"containerPort":80{inner}}}]"#);
    let mut all: Vec<String> = [
        "yes please",
        "null",
        "true",
        "0",
        "{}",
        "[]",
        "[ ]",
        "[null]",
        "[[]]",
        "[{}]",
        "\"\"",
        r#"[{"containerPort":80}"#,
        r#"[{"containerPort":80}]]"#,
        r#"[{"containerPort":80},]"#,
        r#"[,{"containerPort":80}]"#,
        r#"[{"containerPort":80}][{"containerPort":80}]"#,
        r#"[{"containerPort":80}] x"#,
        r#"[{"containerPort":80,}]"#,
        r#"[{"containerPort":080}]"#,
        r#"[{"containerPort":0}]"#,
        r#"[{"containerPort":-1}]"#,
        r#"[{"containerPort":+1}]"#,
        r#"[{"containerPort":1.0}]"#,
        r#"[{"containerPort":1e1}]"#,
        r#"[{"containerPort":100000}]"#,
        r#"[{"containerPort":null}]"#,
        r#"[{"containerPort":""}]"#,
        r#"[{"containerPort":"WEB"}]"#,
        r#"[{"containerPort":"a_b"}]"#,
        r#"[{"containerPort":"sixteen-letters-"}]"#,
        r#"[{"containerPort":"\u0077eb"}]"#,
        r#"[{"containerPort":80,"containerPort":81}]"#,
        r#"[{"ContainerPort":80}]"#,
        r#"[{"containerport":80}]"#,
        r#"[{"container_port":80}]"#,
        r#"[{"protocol":"TCP"}]"#,
        "[{\u{a0}\"containerPort\":80}]",
        "\u{feff}[{\"containerPort\":80}]",
        "[{\"containerPort\":80}]\0",
        "[{\"containerPort\":\u{ff18}0}]",
        "\u{a0}",
        "\u{2028}",
        "\u{85}",
        "\u{b}",
        "\x0b[{\"containerPort\":80}]",
        "[{\"containerPort\":\u{b}80}]",
        "'[]'",
        "[{'containerPort':80}]",
        "[{containerPort:80}]",
        "[80]",
        "[\"web\"]",
        "// x\n[{\"containerPort\":80}]",
    ]
    .map(str::to_owned)
    .into();
    all.extend(
        [
            r#","hostPort":22"#,
            r#","\u0068ostPort":22"#,
            r#","HOSTPORT":22"#,
            ",\"ho\u{17f}tPort\":22",
            r#","hostPort":0"#,
            r#","podIP":"1.2.3.4""#,
            r#","podName":"p""#,
            r#","name":"web""#,
            r#","protocol":"tcp""#,
            r#","protocol":"ICMP""#,
            r#","protocol":null"#,
            r#","protocol":"""#,
            r#","protocol":6"#,
            r#","Protocol":"TCP""#,
            r#","hostIP":null"#,
            r#","hostIP":"""#,
            r#","hostIP":"node1""#,
            r#","hostIP":"1.2.3.4/8""#,
            r#","hostIP":"fe80::1%eth0""#,
            r#","hostip":"1.2.3.4""#,
            r#","hostIP":"::ffff:1.2.3.4""#,
            r#","hostIP":" 1.2.3.4""#,
            r#","hostIP":"1.2.3.4","hostIP":"1.2.3.5""#,
            r#","protocol":"TCP","protocol":"UDP""#,
            r#","protocol":"TCP","hostIP":"::1","protocol":"UDP""#,
            r#","x":{"containerPort":1}"#,
            ",\"\":1",
        ]
        .map(entry),
    );
    all.push(format!(
        "[{}]",
        vec![r#"{"containerPort":80}"#; 1_000].join(",")
    ));
    all.push(" ".repeat(20_000));
    all.push("[".repeat(20_000));
    all.push("x".repeat(200_000));
    all
}

#[test]
fn parser_and_policy_accept_valid_requests() {
    let policy = Policy::read();
    for value in good() {
        assert!(parses(&value), "the parser refuses {value:?}");
        assert!(policy.admits(&value), "the policy refuses {value:?}");
    }
}

#[test]
fn the_parser_accepts_no_hostile_value_that_the_policy_refuses() {
    let policy = Policy::read();
    let mut refused = 0;
    for value in hostile() {
        let (parser, policy) = (parses(&value), policy.admits(&value));
        assert!(
            !parser || policy,
            "the parser accepts {value:?}, the policy does not"
        );
        refused += usize::from(!parser);
    }
    assert!(
        refused > 70,
        "only {refused} values are refused: the list is not hostile"
    );
}

/// Pieces of valid values in a random order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "[", "]", "{", "}", ",", ":", "\"containerPort\"", "\"protocol\"", "\"hostIP\"", "\"TCP\"",
            "\"UDP\"", "80", "0", "65536", "\"web\"", "\"1.2.3.4\"", "\"::1\"", " ", "\n", "\x0c", "\u{b}",
            "\\u0068", "[{\"containerPort\":80}", "]", "{\"containerPort\":", ",\"protocol\":\"UDP\"}", "null",
        ]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// A valid value with one character replaced.
fn damaged() -> impl Strategy<Value = String> {
    let value = prop::sample::select(good());
    (value, any::<prop::sample::Index>(), any::<char>()).prop_map(|(value, at, c)| {
        let mut chars: Vec<char> = value.chars().collect();
        if !chars.is_empty() {
            let at = at.index(chars.len());
            chars[at] = c;
        }
        chars.into_iter().collect()
    })
}

#[test]
fn the_parser_accepts_no_random_value_that_the_policy_refuses() {
    let policy = Policy::read();
    let config = ProptestConfig::with_cases(5_000);
    let values = prop_oneof![pieces(), damaged(), any::<String>()];
    proptest::test_runner::TestRunner::new(config)
        .run(&values, |value| {
            prop_assert!(!parses(&value) || policy.admits(&value), "{:?}", value);
            Ok(())
        })
        .unwrap();
}

/// The regular expression of a variable in the policy for pod templates.
fn template_expression(variable: &str) -> Regex {
    let head = format!("- name: {variable} ");
    let text = &TEMPLATES[TEMPLATES.find(&head).expect("a variable")..];
    let text = text.split_once("matches(r'").expect("an expression").1;
    Regex::new(text.split_once("')").expect("its end").0).expect("an expression")
}

#[test]
fn a_template_with_a_result_gets_the_warning_of_its_pods() {
    let (copied, chosen) = (template_expression("copied"), template_expression("chosen"));
    for (variable, warning) in [("copied", COPIED_RESULT), ("chosen", CHOSEN_HOST_PORT)] {
        let validation =
            format!("- expression: \"!variables.{variable}\"\n    message: '{warning}'\n");
        assert!(TEMPLATES.contains(&validation), "{validation}");
    }
    let own = r#"[{"containerPort":9040,"hostPort":7001}]"#;
    assert!(copied.is_match(RESULT) && !copied.is_match(own) && chosen.is_match(own));
    for value in good() {
        assert!(
            !copied.is_match(&value) && !chosen.is_match(&value),
            "{value:?}"
        );
    }
    // no user writes a key with an escape by mistake; such a template is called invalid
    for value in hostile().into_iter().filter(|it| !it.contains('\\')) {
        let result = matches!(classify(&value), Value::Result);
        let warned = copied.is_match(&value) || chosen.is_match(&value);
        assert!(!result || warned, "a result without its warning: {value:?}");
    }
}

/// Permitted requests must end at the match condition, so it repeats the expression that the validations use.
#[test]
fn the_condition_permits_what_the_validations_permit() {
    let condition = &MANIFEST[..MANIFEST.find("  variables:").expect("variables")];
    for name in ["port", "other", "entry"] {
        let text = expression(name).replace("variables.", "");
        assert!(condition.contains(&text), "{text}");
    }
    let shape = MANIFEST
        .split("variables.value.matches(")
        .nth(1)
        .expect("asks");
    let shape = shape
        .lines()
        .next()
        .expect("a line")
        .replace("variables.", "");
    assert!(condition.contains(&shape), "{shape}");
}
