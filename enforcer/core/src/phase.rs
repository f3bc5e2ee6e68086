//! How far a pod is on its way to being mapped.

/// A pod's progress, for people. Derived from what is known, never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Found in the kernel after a restart; the API has not shown the pod yet.
    Recovered,
    /// It asks for nothing, or has ended.
    Idle,
    /// It cannot be mapped now.
    Refused,
    /// It asks for ports; the keeper has not bound all of them yet.
    Requested,
    /// Every port is bound.
    Held,
    /// Every rule is in the kernel.
    Programmed,
    /// The API shows the result.
    Published,
}

impl Phase {
    /// The word used in `/state` and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Idle => "idle",
            Self::Refused => "refused",
            Self::Requested => "requested",
            Self::Held => "held",
            Self::Programmed => "programmed",
            Self::Published => "published",
        }
    }
}
