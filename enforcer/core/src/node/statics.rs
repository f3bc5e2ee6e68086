//! Static host ports: somebody else translates them, and nothing is taken from them.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::PodUid;

use super::NodeState;
use crate::action::EventKind;
use crate::pods::state::{self, StaticPort};
use crate::ports::PortKey;

impl NodeState {
    /// The pod's spec claims these host ports. They are given to nobody, and whoever leases one of
    /// them moves.
    pub(super) fn set_static_ports(
        &mut self,
        now: Duration,
        uid: &PodUid,
        ports: &BTreeSet<StaticPort>,
    ) {
        let before = if ports.is_empty() {
            self.statics.remove(uid).unwrap_or_default()
        } else {
            self.statics
                .insert(uid.clone(), ports.clone())
                .unwrap_or_default()
        };
        for port in ports.difference(&before) {
            self.pool.occupy(port.key);
            self.make_way(now, uid, *port);
        }
        for port in before.difference(ports) {
            self.came_free |= self.pool.vacate(port.key);
        }
    }

    /// Our rules would win over those of the static port: its pod would lose traffic that its spec
    /// promises. So ours moves, and both pods are told.
    fn make_way(&mut self, now: Duration, claimant: &PodUid, port: StaticPort) {
        let StaticPort { key, .. } = port;
        self.release_early(now, key);
        let owner = self.owner(key).map(|(uid, lease)| (uid.clone(), lease));
        let Some((uid, lease)) = owner.filter(|(_, lease)| port.clashes(lease)) else {
            return;
        };
        self.end_lease(now, &uid, &lease, Duration::ZERO);
        self.release_early(now, key);
        self.update_waiting(&uid);
        let name = |uid: &PodUid| {
            let facts = self.pods.get(uid).and_then(|pod| pod.facts.as_ref());
            facts.map_or_else(|| format!("with uid {uid}"), |facts| facts.pod.to_string())
        };
        let (keeper, mover) = (name(claimant), name(&uid));
        let (protocol, number) = key;
        if uid != *claimant {
            let note = format!(
                "host port {number}/{protocol} is a static hostPort of pod {keeper}, which keeps \
                 it: this pod gets another one"
            );
            self.emit(&uid, EventKind::PortConflict, note);
        }
        let note = format!(
            "hostPort {number}/{protocol} of this pod was mapped to pod {mover} until now: that pod \
             gets another one; static hostPorts outside the range {range} never clash",
            range = self.pool.range(),
        );
        self.emit(claimant, EventKind::PortConflict, note);
    }

    /// A resting port that a static one needs is let go of as soon as no rule uses it: a process of
    /// the static pod's own may have to bind it.
    fn release_early(&mut self, now: Duration, key: PortKey) {
        if let Some(rest) = self.draining.get_mut(&key) {
            *rest = Duration::ZERO;
        } else if self.cooling.contains(key) {
            self.cooling.insert(key, now);
        } else {
            return;
        }
        self.previous.forget(key);
        self.release_early.insert(key);
    }

    /// Every static port, counted as the pool counts them.
    pub(super) fn static_keys(&self) -> impl Iterator<Item = PortKey> + '_ {
        self.statics.values().flatten().map(|port| port.key)
    }
}

impl StaticPort {
    /// Whether a lease would answer where this port does.
    fn clashes(&self, lease: &portmapping_shared::LeasedPort) -> bool {
        let apart = match (self.host_ip, lease.host_ip) {
            (Some(static_ip), Some(leased_ip)) => static_ip != leased_ip,
            // 0.0.0.0 and no address at all were told apart before: both are every address here
            _ => false,
        };
        state::key(lease) == self.key && !apart
    }
}
