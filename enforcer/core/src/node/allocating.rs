//! Which pod gets which port.

use std::collections::BTreeMap;
use std::time::Duration;

use portmapping_shared::{HostPort, LeasedPort, PodUid, Protocol, RequestedPort};

use super::NodeState;
use crate::action::EventKind;
use crate::allocator::Exhausted;
use crate::pod::{Hold, Refusal, Want};

impl NodeState {
    /// Grants ports to every pod that lacks some, oldest first. A pod takes all it lacks or none.
    pub(super) fn allocate_waiting(&mut self, _now: Duration) {
        let mut waiting: Vec<(u64, PodUid)> = self
            .tenants
            .iter()
            .filter(|(_, tenant)| matches!(tenant.want, Want::Ports(_)))
            .filter(|(_, tenant)| !tenant.unleased().is_empty())
            .map(|(uid, tenant)| (tenant.seq, uid.clone()))
            .collect();
        waiting.sort_unstable();
        for (_, uid) in waiting {
            self.allocate(&uid);
        }
    }

    fn allocate(&mut self, uid: &PodUid) {
        let Some(tenant) = self.tenants.get(uid) else {
            return;
        };
        let missing = tenant.unleased();
        let wishes: Vec<Option<HostPort>> = missing.iter().map(|port| tenant.wish(port)).collect();
        if let Err(exhausted) = self.enough_for(&missing) {
            let message = self.exhaustion(exhausted);
            if let Some(tenant) = self.tenants.get_mut(uid)
                // the numbers of the first refusal stay: a new text would be a new API write
                && !tenant.refusal.as_ref().is_some_and(|r| r.kind == EventKind::NoFreePort)
            {
                tenant.refusal = Some(Refusal {
                    kind: EventKind::NoFreePort,
                    message,
                });
            }
            return;
        }
        let mut granted = Vec::with_capacity(missing.len());
        for (port, wish) in missing.iter().zip(wishes) {
            let host_port = wish
                .filter(|wish| self.pool.take((port.protocol, *wish)))
                .or_else(|| self.pool.pick(port.protocol, &mut self.rng));
            let Some(host_port) = host_port else { continue };
            granted.push(LeasedPort {
                protocol: port.protocol,
                host_port,
                container_port: port.container_port,
                host_ip: port.host_ip,
            });
        }
        if let Some(tenant) = self.tenants.get_mut(uid) {
            tenant
                .lease
                .extend(granted.into_iter().map(|lease| (lease, Hold::Missing)));
            if tenant
                .refusal
                .as_ref()
                .is_some_and(|r| r.kind == EventKind::NoFreePort)
            {
                tenant.refusal = None;
            }
        }
    }

    fn enough_for(&self, missing: &[RequestedPort]) -> Result<(), Exhausted> {
        let mut asked: BTreeMap<Protocol, usize> = BTreeMap::new();
        for port in missing {
            *asked.entry(port.protocol).or_default() += 1;
        }
        for (protocol, asked) in asked {
            let free = self.pool.free(protocol);
            if free < asked {
                return Err(Exhausted {
                    protocol,
                    asked,
                    free,
                });
            }
        }
        Ok(())
    }

    /// Says where the ports are, and what would help.
    fn exhaustion(&self, exhausted: Exhausted) -> String {
        let Exhausted { protocol, .. } = exhausted;
        let of = |key: &(Protocol, HostPort)| key.0 == protocol;
        let leases = self.tenants.values().flat_map(|tenant| tenant.lease.keys());
        let mapped = leases.filter(|lease| lease.protocol == protocol).count();
        let cooling = self.cooling.keys().filter(of).count();
        let quarantined = self.quarantined.keys().filter(of).count();
        format!(
            "{exhausted}: range {range} has {size} ports, {mapped} mapped, {cooling} cooling down, \
             {quarantined} held by other processes, {excluded} excluded; the pod is mapped when \
             ports come free, a larger --range helps for good",
            range = self.pool.range(),
            size = self.pool.range().size(),
            excluded = self.pool.excluded(),
        )
    }
}
