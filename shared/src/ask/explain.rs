//! Says in plain words why a value is not a list of port entries. Called after decoding has failed,
//! so that the user does not get a message in the terms of a JSON library.

use serde_json::Value;

use super::{PortOrName, quoted};

const KEYS: [&str; 3] = ["containerPort", "protocol", "hostIP"];
/// Longest quotation of one field, in characters.
const FIELD_CHARS: usize = 40;

/// Returns what is wrong with a value that is not a request.
pub(super) fn explain(value: &str) -> String {
    let entries = match serde_json::from_str::<Value>(value) {
        Ok(Value::Array(entries)) => entries,
        Ok(other) => return format!("it is {}, not a list in square brackets", kind(&other)),
        Err(error) if value.trim_start().starts_with(['[', '{']) => {
            let (line, column) = (error.line(), error.column());
            return format!("it is not valid JSON: line {line}, column {column}");
        }
        Err(_) => return "it is neither empty nor a list in square brackets".to_owned(),
    };
    let faults = entries.iter().zip(1..);
    let mut faults = faults.filter_map(|(entry, number)| Some((number, fault(entry)?)));
    match faults.next() {
        Some((number, fault)) => format!("entry {number}: {fault}"),
        // decoding into a map keeps the last of two equal keys
        None => "an entry has the same key twice".to_owned(),
    }
}

fn fault(entry: &Value) -> Option<String> {
    let Value::Object(fields) = entry else {
        let found = kind(entry);
        return Some(format!(
            "it is {found}, not an object such as {{\"containerPort\":9040}}"
        ));
    };
    if let Some(key) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let key = quoted(key, FIELD_CHARS);
        return Some(format!(
            "the key \"{key}\" is unknown; known are {}",
            KEYS.join(", ")
        ));
    }
    let Some(port) = fields.get("containerPort") else {
        return Some("containerPort is missing".to_owned());
    };
    container_port(port)
        .or_else(|| protocol(fields.get("protocol")?))
        .or_else(|| host_ip(fields.get("hostIP")?))
}

fn container_port(port: &Value) -> Option<String> {
    match port {
        Value::String(name) if !PortOrName::is_name(name) => Some(format!(
            "containerPort \"{}\" is not a port name",
            quoted(name, FIELD_CHARS)
        )),
        Value::String(_) => None,
        Value::Number(number) => {
            let valid = number.as_u64().is_some_and(|it| (1..=65_535).contains(&it));
            (!valid).then(|| format!("containerPort {number} is not a port: ports are 1-65535"))
        }
        other => Some(format!(
            "containerPort is {}, not a port number or the name of a declared port",
            kind(other)
        )),
    }
}

fn protocol(value: &Value) -> Option<String> {
    let Value::String(text) = value else {
        return Some(format!(
            "protocol is {}, not \"TCP\", \"UDP\" or \"SCTP\"",
            kind(value)
        ));
    };
    let valid = ["TCP", "UDP", "SCTP"].contains(&text.as_str());
    (!valid).then(|| {
        let text = quoted(text, FIELD_CHARS);
        format!("protocol \"{text}\" is not \"TCP\", \"UDP\" or \"SCTP\"")
    })
}

fn host_ip(value: &Value) -> Option<String> {
    let Value::String(text) = value else {
        return Some(format!(
            "hostIP is {}, not an IP address in quotes",
            kind(value)
        ));
    };
    let valid = text.parse::<std::net::IpAddr>().is_ok();
    (!valid).then(|| {
        format!(
            "hostIP \"{}\" is not an IP address",
            quoted(text, FIELD_CHARS)
        )
    })
}

/// The kind of a JSON value, with its article.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text in quotes",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
