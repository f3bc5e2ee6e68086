//! How far a pod is on its way to being mapped.

use crate::pods::{PodState, Progress, Want};

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
    /// The word used in `/state`.
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

impl PodState {
    /// How far the pod is, for people.
    pub(crate) fn phase(&self, progress: &Progress<'_>) -> Phase {
        let Some(facts) = &self.facts else {
            return Phase::Recovered;
        };
        let condition = facts.record.condition.as_ref();
        let published = condition.is_some_and(|condition| condition.status);
        match &self.want {
            Want::Nothing => Phase::Idle,
            _ if self.refusal.is_some() => Phase::Refused,
            Want::Invalid(_) => Phase::Refused,
            Want::Ports(_) if !progress.held => Phase::Requested,
            Want::Ports(_) if self.ips.is_empty() || !progress.ruled => Phase::Held,
            Want::Ports(_) if !published => Phase::Programmed,
            Want::Ports(_) => Phase::Published,
        }
    }
}
