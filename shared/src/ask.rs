//! What a user may ask for, and why an ask is refused, in words that are safe to repeat.

mod explain;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};

use crate::contract::{ANNOTATION, MAX_REQUEST_BYTES};
use crate::pod::canonical_ip;
use crate::port::{ContainerPort, NoPort, Protocol};

/// How much of a user's text an answer repeats, in characters.
const QUOTED_CHARS: usize = 200;
/// The part of it that a parser's words may take: they repeat the user's.
const PARSER_CHARS: usize = 120;

/// A request before it is held against a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Every declared port.
    All,
    /// Only these.
    These(Vec<AskedPort>),
}

/// One entry of a user's request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortOrName {
    /// Need not be declared.
    Number(ContainerPort),
    /// Must be declared.
    Name(String),
}

impl Ask {
    /// Reads what is no published result.
    ///
    /// A request is read no more laxly than the admission policy matches it, else a pod would pass
    /// the webhook only to be refused by the policy after it.
    pub(crate) fn parse(value: &str) -> Result<Self, RequestError> {
        if value.len() > MAX_REQUEST_BYTES {
            return Err(RequestError::TooLong(value.len()));
        }
        // RE2's \s, which the policy uses: a no-break space is no blank to it
        let blank = |b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c');
        if value.bytes().all(blank) {
            return Ok(Self::All);
        }
        if value.contains('\\') {
            return Err(RequestError::Escape);
        }
        match serde_json::from_str::<Vec<AskedPort>>(value) {
            Ok(ports) if ports.is_empty() => Err(RequestError::EmptyList),
            Ok(ports) => Ok(Self::These(ports)),
            Err(_) => Err(RequestError::Syntax(explain::explain(value))),
        }
    }
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Longer than the admission policy reads.
    #[error("it has {0} bytes, more than the {max} that are read", max = MAX_REQUEST_BYTES)]
    TooLong(usize),
    /// Escapes could hide a key from one reader and show it to another.
    #[error("it contains a backslash")]
    Escape,
    /// No list of entries with the known fields.
    #[error("{0}")]
    Syntax(String),
    /// `[]`.
    #[error("it lists no port")]
    EmptyList,
    /// A name that no lasting container declares, at least not with this protocol.
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
    /// One container port on two node addresses would need two host ports.
    #[error("port {0}/{1} is asked for with two different hostIPs")]
    TwoHostIps(ContainerPort, Protocol),
    /// More than one pod may have.
    #[error("it asks for {asked} ports, more than the {max} that one pod may have")]
    TooMany {
        /// Ports asked for.
        asked: usize,
        /// Ports allowed.
        max: usize,
    },
}

/// A request that cannot be granted, in words for the one who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ANNOTATION}: '{value}' is no port request: {why}; write {works}")]
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

/// At most so many characters, control characters escaped, so that no log line can be forged with
/// it; dots where something was left out.
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
                    Err(E::custom(format!("containerPort {name:?} is no port name")))
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A field that may be absent but not null: the admission policy knows no null.
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
        .map_err(|_| de::Error::custom(format!("hostIP {text:?} is no IP address")))?;
    // the unspecified address means what no hostIP means: all of them
    Ok(Some(canonical_ip(ip)).filter(|ip| !ip.is_unspecified()))
}

#[cfg(test)]
mod tests;
