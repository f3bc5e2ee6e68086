//! Requests that cannot be granted, in words that are safe to repeat.

use crate::contract::ANNOTATION;
use crate::port::{ContainerPort, Protocol};

/// How much of a user's text an answer repeats, in characters.
const QUOTED_CHARS: usize = 200;
/// The part of it that a parser's words may take: they repeat the user's.
const PARSER_CHARS: usize = 120;

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Longer than the admission policy reads.
    #[error("it has {0} bytes, more than the {max} that are read", max = crate::contract::MAX_REQUEST_BYTES)]
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
    /// A name that no lasting container declares.
    #[error("no container of the pod declares a port named {0:?}")]
    UnknownName(String),
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
#[error(
    "{ANNOTATION}: '{value}' is no port request: {why}; write \"\" for every declared port, or \
     [{{\"containerPort\":9040,\"protocol\":\"TCP\"}}] for some"
)]
pub struct InvalidRequest {
    value: String,
    /// What is wrong.
    pub why: Why,
}

impl InvalidRequest {
    pub(super) fn new(value: &str, why: Why) -> Self {
        let (why, left) = match why {
            Why::Syntax(text) => {
                let text = quoted(&text, PARSER_CHARS);
                let left = QUOTED_CHARS - text.chars().count().min(PARSER_CHARS);
                (Why::Syntax(text), left)
            }
            // a port's name, of 15 characters at most
            other @ Why::UnknownName(_) => (other, QUOTED_CHARS - 20),
            other => (other, QUOTED_CHARS),
        };
        Self {
            value: quoted(value, left),
            why,
        }
    }
}

/// At most so many characters, control characters escaped, so that no log line can be forged with
/// it; dots where something was left out.
fn quoted(text: &str, max: usize) -> String {
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
