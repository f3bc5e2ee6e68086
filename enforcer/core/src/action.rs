//! What the state machine asks its drivers to do.

use portmapping_shared::{Plan, PodRef};

use crate::ports::PortKey;

/// One thing to do. Every action but an event is answered by an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have the keeper bind these; answered by `held` or `keeper_failed`.
    Hold(Vec<PortKey>),
    /// Have the keeper let go of these; answered by `released` or `keeper_failed`.
    Release(Vec<PortKey>),
    /// Carry out a change set, making the frame of chains whole as well; answered by `programmed`.
    Program(Plan),
    /// Write annotation and condition in one patch; answered by `published`.
    Publish(Publication),
    /// Tell people; best effort, unanswered.
    Event(PodEvent),
}

/// What the API shall say about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The pod; a patch must fail if the name belongs to another uid by now.
    pub pod: PodRef,
    /// What the API says now.
    pub current: Record,
    /// What it shall say.
    pub wanted: Record,
}

/// The part of a pod object that is ours to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// `tkestack.io/portmapping`; None: the pod lacks it.
    pub annotation: Option<String>,
    /// `tkestack.io/portmapping-request`.
    pub mark: Option<String>,
    /// The condition `tkestack.io/portmapping`.
    pub condition: Option<Condition>,
}

/// The part of a pod condition that is ours to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// True or False.
    pub status: bool,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// An event on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod.
    pub pod: PodRef,
    /// What happened.
    pub kind: EventKind,
    /// A sentence for people.
    pub note: String,
}

/// What may happen to a pod's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The pod answers at its host ports.
    Mapped,
    /// Its host ports are gone.
    Released,
    /// Somebody had damaged its rules; they are back.
    Repaired,
    /// The range has too few free ports.
    NoFreePort,
    /// A stranger holds one of its ports, or a static hostPort claims it.
    PortConflict,
    /// The kernel refuses its rules.
    DataplaneError,
    /// The annotation makes no sense.
    InvalidRequest,
    /// Its annotation held a result that nobody but an enforcer may write, and none wrote.
    ForgedResult,
}

impl EventKind {
    /// The event's reason, as the contract spells it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        use portmapping_shared::contract as c;
        match self {
            Self::Mapped => c::EVENT_MAPPED,
            Self::Released => c::EVENT_RELEASED,
            Self::Repaired => c::EVENT_REPAIRED,
            Self::NoFreePort => c::REASON_NO_FREE_PORT,
            Self::PortConflict => c::REASON_PORT_CONFLICT,
            Self::DataplaneError => c::REASON_DATAPLANE_ERROR,
            Self::InvalidRequest => c::REASON_INVALID_REQUEST,
            Self::ForgedResult => c::EVENT_FORGED_RESULT,
        }
    }

    /// Whether the event is of type Warning rather than Normal.
    #[must_use]
    pub fn is_warning(self) -> bool {
        !matches!(self, Self::Mapped | Self::Released)
    }
}
