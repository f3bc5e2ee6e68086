//! What a user may write into the annotation, and the errors that explain a refusal.

mod explain;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};

use crate::contract::{ANNOTATION, MAX_REQUEST_BYTES};
use crate::port::{ContainerPort, NoPort, Protocol};

/// Longest quotation of a user's text in an error, in characters.
const QUOTED_CHARS: usize = 200;
/// The share of it for the parser's message, which quotes the user's text too.
const PARSER_CHARS: usize = 120;

/// A request as a user wrote it, before it is resolved against the pod's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Every declared port.
    All,
    /// Only these.
    These(Vec<AskedPort>),
}

/// One entry of a user's request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AskedPort {
    /// A number, or the name of a declared port.
    pub container_port: PortOrName,
    /// None: the declared one, else TCP.
    #[serde(default, deserialize_with = "present")]
    pub protocol: Option<Protocol>,
    /// None: as declared, else all addresses of the node.
    #[serde(rename = "hostIP", default, deserialize_with = "host_ip")]
    pub host_ip: Option<IpAddr>,
}

/// A container port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortOrName {
    /// Need not be declared.
    Number(ContainerPort),
    /// Must be declared.
    Name(String),
}

impl Ask {
    /// Reads a value that is not a published result.
    ///
    /// It accepts nothing that the admission policy refuses: otherwise a pod would pass the webhook
    /// and be refused by the policy after it.
    pub(crate) fn parse(value: &str) -> Result<Self, RequestError> {
        if value.len() > MAX_REQUEST_BYTES {
            return Err(RequestError::TooLong(value.len()));
        }
        // RE2's \s, which the policy uses: it does not match a no-break space
        let blank = |b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c');
        if value.bytes().all(blank) {
            return Ok(Self::All);
        }
        if value.contains('\\') {
            return Err(RequestError::Escape);
        }
        match serde_json::from_str::<Vec<AskedPort>>(value) {
            Ok(ports) if ports.is_empty() => Err(RequestError::EmptyList),
            // an entry that is a list of the fields' values; no value in it can have a bracket
            Ok(_) if value.matches('[').count() > 1 => {
                Err(RequestError::Syntax(explain::explain(value)))
            }
            Ok(ports) => Ok(Self::These(ports)),
            Err(_) => Err(RequestError::Syntax(explain::explain(value))),
        }
    }
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Longer than the admission policy allows.
    #[error("it has {0} bytes; at most {max} are allowed", max = MAX_REQUEST_BYTES)]
    TooLong(usize),
    /// JSON escapes could hide a key from the policy, which does not decode them.
    #[error("it contains a backslash")]
    Escape,
    /// Not a JSON array of entries with the known fields.
    #[error("{0}")]
    Syntax(String),
    /// `[]`.
    #[error("it lists no port")]
    EmptyList,
    /// A name that no container declares, or not with this protocol; plain init containers do not
    /// count.
    #[error(
        "no container of the pod declares a {}port named {name:?}",
        protocol.map(|it| format!("{it} ")).unwrap_or_default()
    )]
    UnknownName {
        /// The name.
        name: String,
        /// The protocol asked for.
        protocol: Option<Protocol>,
    },
    /// One container port with two host IPs would need two host ports.
    #[error("port {0}/{1} is asked for with two different hostIPs")]
    TwoHostIps(ContainerPort, Protocol),
    /// More than the limit for one pod.
    #[error("it asks for {asked} ports, more than the {max} that one pod may have")]
    TooMany {
        /// Ports asked for.
        asked: usize,
        /// Ports allowed.
        max: usize,
    },
}

/// A request that is refused, with a message for the user who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ANNOTATION}: '{value}' is not a port request: {why}; write {works}")]
pub struct InvalidRequest {
    value: String,
    /// Values that work for the same pod.
    works: String,
    /// What is wrong.
    pub why: RequestError,
}

impl InvalidRequest {
    pub(crate) fn new(value: &str, why: RequestError, works: String) -> Self {
        let (why, left) = match why {
            RequestError::Syntax(text) => {
                let text = quoted(&text, PARSER_CHARS);
                let left = QUOTED_CHARS - text.chars().count().min(PARSER_CHARS);
                (RequestError::Syntax(text), left)
            }
            // a port's name, of 15 characters at most
            other @ RequestError::UnknownName { .. } => (other, QUOTED_CHARS - 20),
            other => (other, QUOTED_CHARS),
        };
        Self {
            value: quoted(value, left),
            works,
            why,
        }
    }
}

/// Returns at most so many characters of a text, and dots where it was longer. Control characters
/// are escaped, so that the text cannot forge a log line.
#[must_use]
pub fn quoted(text: &str, max: usize) -> String {
    let mut short = String::new();
    let mut length = 0;
    for c in text.chars() {
        let escaped = c.is_control().then(|| c.escape_default());
        length += escaped.as_ref().map_or(1, ExactSizeIterator::len);
        if length > max {
            short.push_str("...");
            break;
        }
        match escaped {
            Some(escaped) => short.extend(escaped),
            None => short.push(c),
        }
    }
    short
}

impl PortOrName {
    /// core/v1 `ContainerPort.name` is an `IANA_SVC_NAME`, RFC 6335 section 5.1.
    fn is_name(text: &str) -> bool {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=15).contains(&text.len()) && text.bytes().all(plain)
    }
}

impl<'de> Deserialize<'de> for PortOrName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = PortOrName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number from 1 to 65535 or the name of a declared port")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortOrName, E> {
                ContainerPort::try_from(number)
                    .map(PortOrName::Number)
                    .map_err(|error: NoPort| E::custom(format!("containerPort {error}")))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortOrName, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<PortOrName, E> {
                if PortOrName::is_name(name) {
                    Ok(PortOrName::Name(name.to_owned()))
                } else {
                    Err(E::custom(format!(
                        "containerPort {name:?} is not a port name"
                    )))
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Reads a field that may be absent but not null: the admission policy refuses null.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

fn host_ip<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let ip: IpAddr = text
        .parse()
        .map_err(|_| de::Error::custom(format!("hostIP {text:?} is not an IP address")))?;
    // as in core/v1, the unspecified address means all addresses, as no hostIP does
    Ok(Some(ip.to_canonical()).filter(|ip| !ip.is_unspecified()))
}

#[cfg(test)]
mod tests;
