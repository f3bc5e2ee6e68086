//! What the API says of a pod.

use std::net::IpAddr;

use portmapping_shared::annotation::{self, Value};
use portmapping_shared::{InvalidRequest, PodRef, PodSpec, PodUid, PortRequest, RequestedPort};

use crate::action::Record;

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// No annotation, no port, or the pod has finished.
    Nothing,
    /// These ports.
    Ports(PortRequest),
    /// The annotation is not a valid request.
    Invalid(InvalidRequest),
}

impl Want {
    /// The ports that the pod asks for, static ones too.
    pub(crate) fn ports(&self) -> &[RequestedPort] {
        match self {
            Self::Ports(request) => &request.ports,
            Self::Nothing | Self::Invalid(_) => &[],
        }
    }
}

/// A pod of this node as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod.
    pub pod: PodRef,
    /// The uid under which the runtime knows the pod, if that is another: of a static pod.
    pub runtime_uid: Option<PodUid>,
    /// The part of its spec that decides about ports.
    pub spec: PodSpec,
    /// The resourceVersion of the pod that shows all this.
    pub version: String,
    /// What the API says of its mapping.
    pub record: Record,
    /// The field manager, other than the enforcer, that wrote the annotation last.
    pub annotation_manager: Option<String>,
    /// Addresses of its sandbox as the API names them, the first one first. They come late; empty
    /// before.
    pub pod_ips: Vec<IpAddr>,
    /// Addresses of the node, the first one first.
    pub host_ips: Vec<IpAddr>,
    /// A container has started, or the kubelet says that the sandbox is ready for them.
    pub started: bool,
    /// No container runs, and none will run again.
    pub finished: bool,
    /// The pod is being deleted: what is written now has no reader.
    pub deleting: bool,
}

impl PodFacts {
    /// What the annotation, else the request mark, asks for.
    pub(crate) fn want(&self, max_ports: usize) -> Want {
        let Some(value) = self.record.annotation.as_deref() else {
            return Want::Nothing;
        };
        if self.finished {
            return Want::Nothing;
        }
        // once the annotation is a result, the mark says what was asked for
        let marked = match annotation::classify(value) {
            Value::Result => self.marked(max_ports),
            Value::Request(_) | Value::Invalid(_) => None,
        };
        let request = match marked {
            Some(request) => Ok(request),
            None => PortRequest::resolve(value, &self.spec, max_ports),
        };
        match request {
            Ok(request) if request.ports.is_empty() => Want::Nothing,
            Ok(request) => Want::Ports(request),
            Err(invalid) => Want::Invalid(invalid),
        }
    }

    /// Whether `want` is the same for both. Other changes come many times a second if a user wants.
    pub(super) fn asks_as(&self, other: &Self) -> bool {
        let (one, two) = (&self.record, &other.record);
        (&one.annotation, &one.mark) == (&two.annotation, &two.mark)
            && self.finished == other.finished
            && self.spec == other.spec
    }

    /// What the request mark asks for.
    pub(super) fn marked(&self, max_ports: usize) -> Option<PortRequest> {
        let mark = self.record.mark.as_deref()?;
        PortRequest::from_mark(mark, &self.spec, max_ports).ok()
    }
}
