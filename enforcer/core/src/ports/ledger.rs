//! The ledger: one state for each host port of the node. No other place holds or changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portmapping_shared::{LeasedPort, PodUid, PortKey};

/// How long to wait before the keeper is asked again after a failure or a refusal.
pub(crate) const KEEPER_RETRY: Duration = Duration::from_secs(2);

/// Whether the keeper holds a leased port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// To be asked for.
    Missing,
    /// Asked for, not answered.
    Asked,
    /// Bound.
    Held,
    /// Another process has the port although the pod is mapped, or the kernel could not bind it; asked
    /// for again at `retry_at`.
    Lost { retry_at: Duration },
}

impl Hold {
    /// The hold of a port that the keeper's list has, or has not.
    pub(super) fn listed(held: bool) -> Self {
        if held { Self::Held } else { Self::Missing }
    }
}

/// What a host port is doing. A port is in one state, so it cannot be two things at once.
///
/// ```text
///              allocate              lease ends, a rule is or may be in the kernel
///  +------+ -------------> +--------+ ------------------------------> +----------+
///  | Free |                | Leased | <----------- reclaim ---------- | Draining |
///  +------+                +--------+                                 +----------+
///   ^    ^                  |  |  ^                                        |
///   |    |                  |  |  |                      last rule removed |
///   |    |    bind refused, |  |  |                                        v
///   |    |          no rule |  |  +------------- reclaim ----------- +---------+
///   |    |                  |  +----- lease ends, no rule ---------> | Cooling |
///   |    |                  v                                        +---------+
///   |    |  over     +-------------+                       rest over |     ^ keeper failed,
///   |    +---------- | Quarantined |                                 v     | list comes
///   |                +-------------+ <----- closed, early ----- +-----------+
///   +------------------------------------- closed ------------- | Releasing |
///                                                               +-----------+
///  A late "bound", and the keeper's list, turn Free and Quarantined into Cooling, early.
///
///  The hold of a leased port:
///    Missing --asked--> Asked --bound--> Held
///    Asked --keeper failed--> Missing
///    Asked, Held --bind refused, mapped--> Lost --asked--> Asked
///    Asked --bind failed--> Lost
///    any --the keeper's list--> Held, Missing
/// ```
///
/// | event | from | to |
/// |---|---|---|
/// | a pod gets the port | Free | Leased, hold Missing |
/// | reclaim: same namespace, name, protocol, container port; or the pod's own result names it | Draining, Cooling, not early | Leased, hold Missing |
/// | start: a rule names its pod | Free | Leased, hold Held or Missing |
/// | start: held without a lease | Free | Cooling (Draining where a rule is present) |
/// | a rule is asked for, or the pod's confirmed result names the port | Leased | the same, used |
/// | the lease ends | Leased | Draining where a rule is or may be in the kernel, else Cooling; if it was never used, with a rest of 0 |
/// | the lease ends for a static claim | Leased | the same, early, with a rest of 0 |
/// | the last rule is removed | Draining | Cooling until now + rest |
/// | a pod's spec claims the number | Draining, Cooling | the same, early, with a rest of 0 |
/// | the rest is over | Cooling | Releasing |
/// | the quarantine is over | Quarantined | Free |
/// | the keeper is asked | hold Missing, Lost | hold Asked |
/// | bound | hold Asked | hold Held |
/// | bound, too late | Free, Quarantined | Cooling until now, early |
/// | refused, no rule | Leased | Quarantined |
/// | refused, mapped | hold Asked, Held | hold Lost |
/// | bind failed for another reason | hold Asked | hold Lost |
/// | the keeper failed | hold Asked | hold Missing |
/// | the keeper failed | Releasing | Cooling until now |
/// | the keeper's list | Leased | hold Held or Missing |
/// | the keeper's list | Releasing | Cooling until now |
/// | the keeper's list has it | Free, Quarantined | Cooling until now, early |
/// | closed | Releasing | Free; if early, Quarantined until now + cool-down |
///
/// Any other event is refused and changes nothing. In the three states in which a port rests,
/// `early` says that the rest was ended before its time: a static claim needs the number, or the
/// keeper holds it for no pod. Such a port goes to no pod for as long as it would have rested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum PortState {
    /// No pod has it, and the keeper does not hold it.
    #[default]
    Free,
    /// A pod has it.
    Leased {
        pod: PodUid,
        lease: LeasedPort,
        hold: Hold,
        /// A rule led to the pod, now or before a restart: clients may know the port.
        used: bool,
    },
    /// Rests, still held, for `rest` from when the last rule is out of the kernel.
    Draining { rest: Duration, early: bool },
    /// Rests, still held.
    Cooling { until: Duration, early: bool },
    /// The keeper is asked to close it.
    Releasing { early: bool },
    /// Not held, and given to no pod: another process has it, or it was released early.
    Quarantined { until: Duration },
}

/// The next state; or the state as it was, where the table has no such transition.
pub(crate) type Transition = Result<PortState, PortState>;

impl PortState {
    pub(super) fn allocate(self, pod: &PodUid, lease: LeasedPort) -> Transition {
        match self {
            Self::Free => Ok(leased(pod, lease, Hold::Missing, false)),
            other => Err(other),
        }
    }

    /// A rule found at the start proves the lease; `held`: what the keeper says.
    pub(super) fn recover_lease(self, pod: &PodUid, lease: LeasedPort, held: bool) -> Transition {
        match self {
            Self::Free => Ok(leased(pod, lease, Hold::listed(held), true)),
            other => Err(other),
        }
    }

    /// The keeper still holds the port, and says so when it is asked.
    pub(super) fn reclaim(self, pod: &PodUid, lease: LeasedPort) -> Transition {
        match self {
            Self::Draining { early: false, .. } | Self::Cooling { early: false, .. } => {
                Ok(leased(pod, lease, Hold::Missing, true))
            }
            other => Err(other),
        }
    }

    pub(super) fn recover_hold(self, now: Duration, rest: Duration, ruled: bool) -> Transition {
        match self {
            Self::Free => Ok(resting(now, rest, ruled, false)),
            other => Err(other),
        }
    }

    /// A rule for the port is asked for, or was before a restart.
    pub(super) fn ruled(self) -> Transition {
        match self {
            Self::Leased {
                pod, lease, hold, ..
            } => Ok(leased(&pod, lease, hold, true)),
            other => Err(other),
        }
    }

    /// Clients reach the old pod while a rule is there, so the rest begins when the last one is removed.
    /// A port that never had one needs no rest.
    pub(super) fn end_lease(
        self,
        now: Duration,
        rest: Duration,
        ruled: bool,
        early: bool,
    ) -> Transition {
        match self {
            Self::Leased { used, .. } if used || ruled => Ok(resting(now, rest, ruled, early)),
            Self::Leased { .. } => Ok(resting(now, Duration::ZERO, false, early)),
            other => Err(other),
        }
    }

    pub(super) fn rules_removed(self, now: Duration) -> Transition {
        match self {
            Self::Draining { rest, early } => Ok(resting(now, rest, false, early)),
            other => Err(other),
        }
    }

    /// A process of the claiming pod may have to bind the port itself.
    pub(super) fn claim(self, now: Duration) -> Transition {
        match self {
            Self::Draining { .. } => Ok(resting(now, Duration::ZERO, true, true)),
            Self::Cooling { .. } => Ok(resting(now, Duration::ZERO, false, true)),
            other => Err(other),
        }
    }

    pub(super) fn rest_over(self) -> Transition {
        match self {
            Self::Cooling { early, .. } => Ok(Self::Releasing { early }),
            Self::Quarantined { .. } => Ok(Self::Free),
            other => Err(other),
        }
    }

    pub(super) fn asked(self) -> Transition {
        match self.hold() {
            Some(Hold::Missing | Hold::Lost { .. }) => self.with_hold(Hold::Asked),
            _ => Err(self),
        }
    }

    pub(super) fn bound(self, now: Duration) -> Transition {
        match self {
            Self::Free | Self::Quarantined { .. } => Ok(resting(now, Duration::ZERO, false, true)),
            other if other.hold() == Some(Hold::Asked) => other.with_hold(Hold::Held),
            other => Err(other),
        }
    }

    /// A mapped pod keeps the port, because its rules win over the other process's socket.
    pub(super) fn bind_refused(
        self,
        now: Duration,
        ruled: bool,
        quarantine: Duration,
    ) -> Transition {
        let (retry_at, until) = (now + KEEPER_RETRY, now + quarantine);
        match (self.hold(), ruled) {
            (Some(Hold::Asked | Hold::Held), true) => self.with_hold(Hold::Lost { retry_at }),
            (Some(_), false) => Ok(Self::Quarantined { until }),
            _ => Err(self),
        }
    }

    pub(super) fn bind_failed(self, now: Duration) -> Transition {
        match self.hold() {
            Some(Hold::Asked) => self.with_hold(Hold::Lost {
                retry_at: now + KEEPER_RETRY,
            }),
            _ => Err(self),
        }
    }

    pub(super) fn keeper_failed(self, now: Duration) -> Transition {
        match self {
            Self::Releasing { early } => Ok(resting(now, Duration::ZERO, false, early)),
            other if other.hold() == Some(Hold::Asked) => other.with_hold(Hold::Missing),
            other => Err(other),
        }
    }

    pub(super) fn listed(self, now: Duration, held: bool) -> Transition {
        match self {
            Self::Releasing { early } => Ok(resting(now, Duration::ZERO, false, early)),
            other @ (Self::Free | Self::Quarantined { .. }) if held => other.bound(now),
            other => other.with_hold(Hold::listed(held)),
        }
    }

    pub(super) fn closed(self, now: Duration, cooldown: Duration) -> Transition {
        let until = now + cooldown;
        match self {
            Self::Releasing { early: false } => Ok(Self::Free),
            Self::Releasing { early: true } => Ok(Self::Quarantined { until }),
            other => Err(other),
        }
    }

    fn with_hold(self, hold: Hold) -> Transition {
        match self {
            Self::Leased {
                pod, lease, used, ..
            } => Ok(leased(&pod, lease, hold, used)),
            other => Err(other),
        }
    }

    pub(super) fn hold(&self) -> Option<Hold> {
        match self {
            Self::Leased { hold, .. } => Some(*hold),
            _ => None,
        }
    }

    pub(super) fn lease(&self) -> Option<(&PodUid, LeasedPort)> {
        match self {
            Self::Leased { pod, lease, .. } => Some((pod, *lease)),
            _ => None,
        }
    }

    /// When the keeper is to be asked something about the port.
    pub(super) fn keeper_due(&self) -> Option<Duration> {
        match self {
            Self::Cooling { until, .. } => Some(*until),
            _ => match self.hold()? {
                Hold::Missing => Some(Duration::ZERO),
                Hold::Lost { retry_at } => Some(retry_at),
                Hold::Asked | Hold::Held => None,
            },
        }
    }

    pub(super) fn quarantined_until(&self) -> Option<Duration> {
        match self {
            Self::Quarantined { until } => Some(*until),
            _ => None,
        }
    }
}

fn leased(pod: &PodUid, lease: LeasedPort, hold: Hold, used: bool) -> PortState {
    let pod = pod.clone();
    PortState::Leased {
        pod,
        lease,
        hold,
        used,
    }
}

fn resting(now: Duration, rest: Duration, ruled: bool, early: bool) -> PortState {
    let until = now + rest;
    if ruled {
        PortState::Draining { rest, early }
    } else {
        PortState::Cooling { until, early }
    }
}

/// A port's state, and next to it the pods whose specs claim the number statically.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) state: PortState,
    pub(super) claims: BTreeSet<PodUid>,
}

static FREE: Port = Port {
    state: PortState::Free,
    claims: BTreeSet::new(),
};

/// Every host port of the node. A port without an entry is Free and claimed by no pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    ports: BTreeMap<PortKey, Port>,
}

impl Ledger {
    pub(super) fn port(&self, key: PortKey) -> &Port {
        self.ports.get(&key).unwrap_or(&FREE)
    }

    pub(super) fn state(&self, key: PortKey) -> &PortState {
        &self.port(key).state
    }

    /// Every port that is not Free, or that a pod claims.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PortKey, &Port)> {
        self.ports.iter().map(|(key, port)| (*key, port))
    }

    /// Carries a transition out; the state before it, or None where it was refused.
    pub(super) fn change(
        &mut self,
        key: PortKey,
        transition: impl FnOnce(PortState) -> Transition,
    ) -> Option<PortState> {
        let Port { state, claims } = self.ports.remove(&key).unwrap_or_default();
        let before = state.clone();
        let (before, state) = match transition(state) {
            Ok(state) => (Some(before), state),
            Err(state) => (None, state),
        };
        self.put(key, Port { state, claims });
        before
    }

    /// Adds or removes a pod's static claim on the number.
    pub(super) fn set_claim(&mut self, key: PortKey, pod: &PodUid, claims: bool) {
        let mut port = self.ports.remove(&key).unwrap_or_default();
        if claims {
            port.claims.insert(pod.clone());
        } else {
            port.claims.remove(pod);
        }
        self.put(key, port);
    }

    fn put(&mut self, key: PortKey, port: Port) {
        if port != FREE {
            self.ports.insert(key, port);
        }
    }
}

/// The number that a lease is about.
pub(crate) fn key_of(lease: &LeasedPort) -> PortKey {
    (lease.protocol, lease.host_port)
}

#[cfg(test)]
mod tests;
