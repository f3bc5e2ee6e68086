//! A pod that is not mapped although the API says so: how long that may last, and the read of the
//! pod that maps it again where only the runtime's result was lost.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{Backoff, LeasedPort, PodRef};

use super::facts::PodFacts;
use super::state::{PodState, same_family};
use super::unmapped::{Confirmation, DELETION};
use crate::sandbox::AddressSource;

/// Damage that is repaired within this time is an event and no write. A lost sandbox result is not:
/// the pod is mapped again after [`CONFIRM`] at the earliest.
const GRACE: Duration = Duration::from_secs(2);
/// From the removal of a sandbox's result to the read that may map the pod again. By then the
/// kubelet has reported a sandbox that has really ended.
const CONFIRM: Duration = Duration::from_secs(3);
/// Waits between reads that confirmed nothing.
const REPEAT: Backoff = Backoff {
    first: Duration::from_secs(2),
    longest: Duration::from_secs(30),
};

impl PodState {
    /// Records since when the API says True and the pod is not mapped.
    pub(crate) fn update_unmapped(&mut self, now: Duration, mapped: bool) {
        let shown = self.is_shown_mapped();
        self.unmapped.since = if mapped || self.want.ports().is_empty() {
            None
        } else {
            self.unmapped.since.or(shown.then_some(now))
        };
        self.unmapped.vouched |= mapped;
    }

    /// Whether the API says that the pod is mapped.
    pub(crate) fn is_shown_mapped(&self) -> bool {
        let facts = self.facts.as_ref();
        let condition = facts.and_then(|facts| facts.record.condition.as_ref());
        condition.is_some_and(|condition| condition.status)
    }

    /// When the condition of a pod that is not mapped becomes False.
    pub(super) fn unmapped_until(&self) -> Option<Duration> {
        let deleting = self.facts.as_ref().is_some_and(|facts| facts.deleting);
        let repair_is_near = self.unmapped.vouched && self.source != AddressSource::Nowhere;
        let grace = match repair_is_near {
            _ if deleting => DELETION,
            true => GRACE,
            false => Duration::ZERO,
        };
        self.unmapped.since.map(|since| since + grace)
    }

    /// Why the condition is False, in words; None while it may still say True.
    pub(crate) fn doubt(&self, now: Duration, owned: bool, held: bool) -> Option<&'static str> {
        self.unmapped_until().filter(|until| *until <= now)?;
        Some(if !self.unmapped.vouched {
            // one text, because each other one would be a write
            "the node has no rules of this pod, as after a restart of the node: the enforcer maps \
             the pod again"
        } else if self.source == AddressSource::Nowhere {
            "the runtime removed the result of the pod's sandbox: the pod is mapped when it has a \
             new one, or when the API server confirms that it still runs at its address"
        } else if !owned {
            "a newer sandbox has an address of this pod: the pod is mapped when that sandbox ends, \
             or when the pod has another address"
        } else if !held {
            "a host port of this pod is not held: the enforcer asks the keeper for it again"
        } else {
            "rules of this pod are missing on the node: the enforcer restores them"
        })
    }

    /// Decides whether the API server must be asked for the pod. Returns the pod if so.
    pub(crate) fn confirmation_due(&mut self, now: Duration, stale: bool) -> Option<PodRef> {
        let facts = self.facts.as_ref()?;
        let needed = stale && !facts.finished && !facts.deleting && !facts.spec.host_network;
        self.confirmation = match self.confirmation {
            _ if !needed => Confirmation::NotNeeded,
            Confirmation::NotNeeded => Confirmation::Due(now + CONFIRM, 0),
            Confirmation::Due(at, reads) if at <= now => {
                self.confirmation = Confirmation::Asked(now, reads.saturating_add(1));
                return Some(facts.pod.clone());
            }
            other => other,
        };
        None
    }

    /// The API server answered the read that was asked for at `asked`. Returns whether the pod runs
    /// at the addresses that the API names; otherwise it is read again later.
    pub(crate) fn confirmed(
        &mut self,
        now: Duration,
        asked: Duration,
        running_at: &[IpAddr],
    ) -> bool {
        let Confirmation::Asked(at, reads) = self.confirmation else {
            return false;
        };
        // a read that began before a later removal proves nothing
        if at != asked {
            return false;
        }
        self.confirmation = Confirmation::Due(now + REPEAT.after(reads, 0.0), reads);
        let same = |facts: &PodFacts| !running_at.is_empty() && facts.pod_ips == running_at;
        self.facts.as_ref().is_some_and(same)
    }

    /// The addresses at which the pod's ports must answer: of each family that pod, host and node
    /// share.
    pub(crate) fn needed_ips(
        &self,
        leases: &BTreeSet<LeasedPort>,
        has_family: impl Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = IpAddr> {
        let asked = |ip: &IpAddr| leases.iter().any(|lease| same_family(lease, *ip));
        let ips = self.ips.iter().copied();
        ips.filter(move |ip| has_family(*ip) && asked(ip))
    }
}
