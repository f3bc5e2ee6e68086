//! The node's state: every pod, every port, what the kernel holds, and what to do next.

mod allocating;
mod holding;
mod programming;
mod publishing;
mod recovering;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{LeasedPort, Mapping, PodUid, PortRange, PortSet};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::action::{Action, EventKind, PodEvent};
use crate::allocator::{PortKey, PortPool};
use crate::pod::{self, PodFacts, Refusal, Tenant, Want};
use crate::resting::Resting;
use crate::sandbox::{Sandbox, SandboxId};

pub use recovering::Recovered;
pub use status::{PodStatus, Status};

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Host ports to allocate from.
    pub range: PortRange,
    /// Ports of the range never to allocate.
    pub excluded: PortSet,
    /// How long a released port rests before it is given to anyone.
    pub cooldown: Duration,
    /// How long a port found in a stranger's hands is left alone.
    pub quarantine: Duration,
    /// Ports one pod may have.
    pub max_ports: usize,
    /// Whether the dataplane can translate IPv6.
    pub ipv6: bool,
}

/// Every decision of one node's enforcer. See the crate's head for the flow.
#[derive(Debug)]
pub struct NodeState {
    config: Config,
    rng: StdRng,
    pool: PortPool,
    cooling: Resting,
    quarantined: Resting,
    /// Let go of by us, not yet by the keeper.
    releasing: BTreeSet<PortKey>,
    tenants: BTreeMap<PodUid, Tenant>,
    /// Static host ports by pod, to give them up when the pod goes.
    statics: BTreeMap<PodUid, BTreeSet<PortKey>>,
    /// What the container runtime told of sandboxes.
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    next_seq: u64,
    kernel: Kernel,
    /// The keeper failed; nothing is asked of it before.
    keeper_retry: Option<Duration>,
    /// Mapped ports in a stranger's hands are asked for again then.
    lost_retry: Option<Duration>,
    actions: Vec<Action>,
}

/// What we believe to be in the kernel.
#[derive(Debug, Default)]
struct Kernel {
    mappings: BTreeSet<Mapping>,
    intact: bool,
    in_flight: bool,
    error: Option<String>,
    retry_at: Option<Duration>,
    failures: u32,
    /// Pods in the next change set at most; halved by failures, doubled by successes.
    batch: usize,
    /// Mappings found missing or altered; their pods are told once they are back.
    damaged: BTreeSet<PodUid>,
}

impl NodeState {
    /// An empty node; nothing is known of the kernel, so the first plan makes the frame.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let pool = PortPool::new(config.range, config.excluded.clone());
        Self {
            config,
            rng: StdRng::seed_from_u64(seed),
            pool,
            cooling: Resting::default(),
            quarantined: Resting::default(),
            releasing: BTreeSet::new(),
            tenants: BTreeMap::new(),
            statics: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            next_seq: 0,
            kernel: Kernel {
                batch: programming::MAX_BATCH,
                ..Kernel::default()
            },
            keeper_retry: None,
            lost_retry: None,
            actions: Vec::new(),
        }
    }

    /// What to do now, in order. Call after every other method, and carry all of it out.
    #[must_use]
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The API shows this pod.
    pub fn pod_applied(&mut self, now: Duration, facts: PodFacts) {
        let uid = facts.pod.uid.clone();
        self.note_static_ports(&uid, &pod::static_ports(&facts));
        let seq = self.next_seq;
        self.next_seq += 1;
        let max_ports = self.config.max_ports;
        let tenant = self
            .tenants
            .entry(uid.clone())
            .or_insert_with(|| Tenant::new(seq));
        let before = tenant.facts.as_ref();
        if before.is_none_or(|before| before.pod_ips != facts.pod_ips) {
            tenant.addressed = seq;
        }
        if before.is_none() {
            // a result found in the API was announced by whoever wrote it
            tenant.announced.clone_from(&facts.record.annotation);
        }
        tenant.want = pod::want(&facts, max_ports);
        if tenant
            .publish
            .echo
            .as_ref()
            .is_some_and(|(echo, _)| *echo == facts.record)
        {
            tenant.publish.echo = None;
        }
        tenant.facts = Some(facts);
        self.settle_lease(now, &uid);
        self.converge(now);
    }

    /// The API says that this pod is gone.
    pub fn pod_gone(&mut self, now: Duration, uid: &PodUid) {
        self.forget(now, uid);
        self.converge(now);
    }

    /// A complete list of the node's pods has come in through `pod_applied`: all others are gone.
    pub fn relisted(&mut self, now: Duration, living: &BTreeSet<PodUid>) {
        let gone: Vec<PodUid> = self
            .tenants
            .keys()
            .filter(|uid| !living.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.forget(now, &uid);
        }
        for tenant in self.tenants.values_mut() {
            // a list shows the present: there is no older event left to wait for
            tenant.publish.echo = None;
        }
        self.converge(now);
    }

    /// The runtime made a sandbox, or changed one.
    pub fn sandbox_up(&mut self, now: Duration, sandbox: Sandbox) {
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
        self.converge(now);
    }

    /// The runtime removed a sandbox.
    pub fn sandbox_down(&mut self, now: Duration, id: &SandboxId) {
        self.sandboxes.remove(id);
        self.converge(now);
    }

    /// The runtime's sandboxes, all of them.
    pub fn sandboxes_listed(&mut self, now: Duration, sandboxes: Vec<Sandbox>) {
        let listed = sandboxes.into_iter().map(|s| (s.id.clone(), s));
        self.sandboxes = listed.collect();
        self.converge(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        self.converge(now);
    }

    /// When `tick` is due at the latest; None: not before something else happens. Always after the
    /// `now` of the last call: what waits for an answer has no deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let publishing = self.tenants.values().flat_map(|tenant| {
            let echo = tenant.publish.echo.as_ref().map(|(_, until)| *until);
            [tenant.publish.retry_at, echo]
        });
        // the keeper is not asked for anything before keeper_retry
        let of_keeper = [self.next_release(), self.lost_retry, self.keeper_retry];
        let of_keeper = of_keeper.into_iter().flatten().min().max(self.keeper_retry);
        let own = [self.quarantined.next(), self.next_program(), of_keeper];
        own.into_iter().chain(publishing).flatten().min()
    }

    /// Asks of everything what is still missing. Idempotent: what is in flight is not asked twice.
    fn converge(&mut self, now: Duration) {
        self.wake_resting(now);
        self.allocate_waiting(now);
        self.ask_holds(now);
        self.program(now);
        self.publish(now);
    }

    fn forget(&mut self, now: Duration, uid: &PodUid) {
        self.note_static_ports(uid, &BTreeSet::new());
        if let Some(tenant) = self.tenants.remove(uid) {
            for lease in tenant.lease.keys() {
                self.rest(now, pod::key(lease));
            }
        }
    }

    /// A released port cools down, still held, so that stale clients meet a refusal and no newer pod.
    fn rest(&mut self, now: Duration, key: PortKey) {
        self.cooling.insert(key, now + self.config.cooldown);
    }

    fn note_static_ports(&mut self, uid: &PodUid, ports: &BTreeSet<PortKey>) {
        let before = if ports.is_empty() {
            self.statics.remove(uid).unwrap_or_default()
        } else {
            self.statics
                .insert(uid.clone(), ports.clone())
                .unwrap_or_default()
        };
        for key in ports.difference(&before) {
            self.pool.occupy(*key);
        }
        for key in before.difference(ports) {
            self.pool.vacate(*key);
        }
    }

    /// Drops what the pod asks for no more; refusals that depend on its words alone are renewed.
    fn settle_lease(&mut self, now: Duration, uid: &PodUid) {
        let Some(tenant) = self.tenants.get_mut(uid) else {
            return;
        };
        tenant.recovered.clear();
        let surplus = tenant.surplus();
        for lease in &surplus {
            tenant.lease.remove(lease);
        }
        tenant.refusal = match &tenant.want {
            Want::Nothing => None,
            Want::Nonsense(invalid) => Some(Refusal {
                kind: EventKind::InvalidRequest,
                message: invalid.to_string(),
            }),
            Want::Ports(_) => tenant
                .refusal
                .take()
                .filter(|r| r.kind != EventKind::InvalidRequest),
        };
        for lease in surplus {
            self.rest(now, pod::key(&lease));
        }
    }

    /// Who owns each pod address: the pod that learned of it last.
    fn address_owners(&self) -> BTreeMap<IpAddr, PodUid> {
        let mut owners: BTreeMap<IpAddr, (u64, &PodUid)> = BTreeMap::new();
        for (uid, tenant) in &self.tenants {
            let Some(facts) = tenant.facts.as_ref().filter(|f| !f.finished) else {
                continue;
            };
            if facts.spec.host_network {
                continue;
            }
            for ip in &facts.pod_ips {
                let owner = owners.entry(*ip).or_insert((tenant.addressed, uid));
                if owner.0 < tenant.addressed {
                    *owner = (tenant.addressed, uid);
                }
            }
        }
        owners
            .into_iter()
            .map(|(ip, (_, uid))| (ip, uid.clone()))
            .collect()
    }

    fn emit(&mut self, uid: &PodUid, kind: EventKind, note: String) {
        let pod = self
            .tenants
            .get(uid)
            .and_then(|tenant| tenant.facts.as_ref());
        if let Some(facts) = pod {
            self.actions.push(Action::Event(PodEvent {
                pod: facts.pod.clone(),
                kind,
                note,
            }));
        }
    }

    /// Finds the pod that leases a port.
    fn lessee(&self, key: PortKey) -> Option<(&PodUid, LeasedPort)> {
        self.tenants.iter().find_map(|(uid, tenant)| {
            tenant
                .lease
                .keys()
                .find(|lease| pod::key(lease) == key)
                .map(|lease| (uid, *lease))
        })
    }
}

#[cfg(test)]
mod tests;
