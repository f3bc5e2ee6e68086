//! Pod sandboxes as the container runtime created them: the first to know a pod's addresses.

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

/// Text that is not a sandbox id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a sandbox id: use 1-128 letters, digits, dots, dashes and underscores")]
pub struct InvalidSandboxId(String);

/// One sandbox. A pod has one at a time, and a new one when the old one ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod it belongs to.
    pub uid: PodUid,
    /// The runtime's name for it.
    pub id: SandboxId,
    /// Its addresses, the first one first.
    pub ips: Vec<IpAddr>,
    /// When its result was written, since the Unix epoch; of two sandboxes the later one counts. It
    /// never decreases from one result to the next, whatever the clock does.
    pub written: Duration,
}

/// What the runtime's results say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxUpdate {
    /// A sandbox has addresses, or has changed.
    Up(Sandbox),
    /// A sandbox is gone; another pod may soon get its addresses.
    Down(SandboxId),
    /// All sandboxes: others that were seen before are gone. Only sent when the results could be
    /// read.
    Listed(Vec<Sandbox>),
}

/// Where a pod's addresses come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressSource {
    /// None are known.
    #[default]
    Nowhere,
    /// `status.podIPs` in the API.
    Status,
    /// The runtime's result for this sandbox.
    Sandbox(SandboxId),
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
            assert!(error.to_string().contains("not a sandbox id"), "{error}");
        }
    }
}
