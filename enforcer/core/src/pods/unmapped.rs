//! What is recorded of a pod that is not mapped: why, since when, and the read that maps it again.

use std::time::Duration;

use crate::action::EventKind;

/// Longest time that a pod which is being deleted is shown as mapped: an ordinary deletion is over by then, and
/// costs no write.
pub(super) const DELETION: Duration = Duration::from_secs(5);

/// Why a pod is not mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: EventKind,
    pub(crate) message: String,
}

/// What is known of a pod that may not be mapped although the API says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unmapped {
    /// Since when the API says True and the pod is not mapped.
    pub(super) since: Option<Duration>,
    /// Rules of the pod were found at the start, or it was mapped since. After a restart of the node there
    /// are none, and the kubelet believes the condition that it finds.
    pub(crate) vouched: bool,
}

/// The read of a pod whose result was removed and whose address the API still names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// The pod has a result, or no address.
    #[default]
    NotNeeded,
    /// To be read at this time; reads so far.
    Due(Duration, u32),
    /// Asked for at this time.
    Asked(Duration, u32),
}

impl Confirmation {
    pub(super) fn next_deadline(self) -> Option<Duration> {
        match self {
            Self::Due(at, _) => Some(at),
            Self::NotNeeded | Self::Asked(..) => None,
        }
    }
}
