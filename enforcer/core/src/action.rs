//! What the state machine asks its drivers to do.

use std::time::Duration;

use portmapping_shared::{Plan, PodRef, PortKey};

/// One thing to do. Every action except an event is answered by a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The keeper must bind these; answered by `held` or `keeper_failed`.
    Hold(Vec<PortKey>),
    /// The keeper must close these; answered by `released` or `keeper_failed`.
    Release(Vec<PortKey>),
    /// Carry out a change set, and create the chains around the rules where they are missing;
    /// answered by `programmed`.
    Program(Plan),
    /// Write annotation and condition in one patch; answered by `published`.
    Publish(Publication),
    /// Read the pod from the API server itself, not from a cache; answered by `pod_read`.
    ReadPod {
        /// The pod.
        pod: PodRef,
        /// When it was asked for; the answer names it.
        asked: Duration,
    },
    /// Emit an event; best effort, not answered.
    Event(PodEvent),
}

/// What the API must say about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The pod; the patch must fail if another uid has the name by now.
    pub pod: PodRef,
    /// The version of the pod that this was decided for; the patch must fail on any other, so that
    /// a change by a user in the meantime is never overwritten.
    pub version: String,
    /// What the API says now.
    pub current: Record,
    /// What it must say.
    pub wanted: Record,
}

/// What the API server answered to a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The pod has this version now, and our record stands in it.
    Written {
        /// Its resourceVersion.
        version: String,
    },
    /// The pod has changed in the meantime; the newer version is decided on when it is shown.
    Conflict,
    /// The write failed, or was not answered.
    Failed,
}

/// The part of a pod object that is ours to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// `tkestack.io/portmapping`; None: the pod does not have it.
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

/// Why the kernel did not take a change of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// What was tried, and the kernel's answer.
    pub message: String,
    /// Whether the enforcer lacks a right, so that every change fails.
    pub not_permitted: bool,
}

impl From<String> for RuleError {
    fn from(message: String) -> Self {
        Self {
            message,
            not_permitted: false,
        }
    }
}

/// Why forwarded packets cannot reach any pod, by family; None: nothing is known to be in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Of IPv4, in words for people.
    pub ipv4: Option<String>,
    /// Of IPv6.
    pub ipv6: Option<String>,
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
    /// The pod is reachable at its host ports.
    Mapped,
    /// Its host ports are released.
    Released,
    /// Another program removed or altered its rules; they are back.
    Repaired,
    /// The range has too few free ports.
    NoFreePort,
    /// Another process has one of its ports, or a static hostPort claims it.
    PortConflict,
    /// A hostIP that it asks for is not a host address of the node.
    HostIpNotOnNode,
    /// The kernel refuses its rules.
    DataplaneError,
    /// The node does not permit the enforcer to change rules.
    NotPermitted,
    /// The annotation is not a valid request.
    InvalidRequest,
    /// Its annotation was a result that no enforcer wrote.
    ForgedResult,
    /// Another controller replaces the result by the request again and again.
    AnnotationContested,
    /// Another program keeps its rules before ours.
    RulesContested,
    /// No TCP connection to one of its host ports gets a reply.
    NoReplies,
    /// It asks for its declared ports and declares none.
    NoPorts,
}

impl EventKind {
    /// The event's reason, as the API shows it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        use portmapping_shared::contract as c;
        match self {
            Self::Mapped => c::EVENT_MAPPED,
            Self::Released => c::EVENT_RELEASED,
            Self::Repaired => c::EVENT_REPAIRED,
            Self::NoFreePort => c::REASON_NO_FREE_PORT,
            Self::PortConflict => c::REASON_PORT_CONFLICT,
            Self::HostIpNotOnNode => c::REASON_HOST_IP_NOT_ON_NODE,
            Self::DataplaneError => c::REASON_DATAPLANE_ERROR,
            Self::NotPermitted => c::REASON_NOT_PERMITTED,
            Self::InvalidRequest => c::REASON_INVALID_REQUEST,
            Self::ForgedResult => c::EVENT_FORGED_RESULT,
            Self::AnnotationContested => c::EVENT_ANNOTATION_CONTESTED,
            Self::RulesContested => c::EVENT_RULES_CONTESTED,
            Self::NoReplies => c::EVENT_NO_REPLIES,
            Self::NoPorts => c::EVENT_NO_PORTS,
        }
    }

    /// Whether the event is of type Warning rather than Normal.
    #[must_use]
    pub fn is_warning(self) -> bool {
        !matches!(self, Self::Mapped | Self::Released)
    }
}
