//! Pod sandboxes as the container runtime made them: where a pod's addresses are known first.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use portmapping_shared::PodUid;

/// A sandbox's id: 1-128 letters, digits, dots, dashes and underscores.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(String);

impl SandboxId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = InvalidSandboxId;

    fn from_str(text: &str) -> Result<Self, InvalidSandboxId> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if (1..=128).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSandboxId(text.chars().take(140).collect()))
        }
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is no sandbox id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no sandbox id: 1-128 letters, digits, dots, dashes and underscores are")]
pub struct InvalidSandboxId(String);

/// One sandbox: a pod has one at a time, and a new one when the old one died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod it is made for.
    pub uid: PodUid,
    /// The runtime's name for it.
    pub id: SandboxId,
    /// Its addresses, the first one first.
    pub ips: Vec<IpAddr>,
    /// When its result was written, since the Unix epoch, and never before one that was written earlier,
    /// whatever the clock did: of two sandboxes the later one counts.
    pub written: Duration,
}

/// What the runtime's results say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxUpdate {
    /// A sandbox has addresses, or has changed.
    Up(Sandbox),
    /// A sandbox is gone; its addresses may be somebody else's soon.
    Down(SandboxId),
    /// Every sandbox there is: others that were seen before are gone. Only sent where the place
    /// they are read from could be read.
    Listed(Vec<Sandbox>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_plain_text_of_bounded_length() {
        let longest = "a".repeat(128);
        for text in ["a", "0f", "k8s.io_pod-1", &longest] {
            assert_eq!(text.parse::<SandboxId>().unwrap().to_string(), text);
        }
        for text in ["", "a b", "a/b", "a\nb", "\u{e9}", &"a".repeat(129)] {
            let error = text.parse::<SandboxId>().unwrap_err();
            assert!(error.to_string().contains("no sandbox id"), "{error}");
        }
    }
}
