//! What is still missing for a pod: ports, holds, rules, a write to the API.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{EventKind, LeasedPort, Mapping, NodeState, PodState, PodUid, Refusal, Want};
use crate::action::Action;
use crate::kernel::port_of;
use crate::pods::Progress;
use crate::ports::{KEEPER_RETRY, key_of};

impl NodeState {
    /// Asks of every marked pod what is still missing. Idempotent: what is under way is not asked
    /// for twice.
    pub(super) fn converge(&mut self, now: Duration) {
        self.agenda.mark_due(now);
        self.ports.end_quarantines(now);
        self.mark_touched();
        self.allocate_waiting(now);
        self.mark_touched();
        let marked = self.agenda.take();
        for uid in &marked {
            let desired = self.desired_of(uid);
            self.kernel.set_desired(uid, desired);
            self.update_refusal(now, uid);
        }
        let (to_hold, to_close) = self.ports.ask_keeper(now);
        let hold = (!to_hold.is_empty()).then_some(Action::Hold(to_hold));
        let release = (!to_close.is_empty()).then_some(Action::Release(to_close));
        let plan = self.kernel.next_plan(now);
        for mapping in plan.iter().flat_map(|plan| &plan.to_create) {
            self.ports.ruled(port_of(mapping));
        }
        let program = plan.map(Action::Program);
        let asked = hold.into_iter().chain(release).chain(program);
        self.actions.extend(asked);
        for uid in &marked {
            self.confirm(now, uid);
            self.publish(now, uid);
            self.emit_suppressed(now, uid);
            let next = self.pods.get(uid).and_then(PodState::next_deadline);
            self.agenda.wait(uid, next);
        }
    }

    /// Marks the pods whose ports changed. Until the API shows a pod, its ports decide which
    /// addresses it claims.
    fn mark_touched(&mut self) {
        for uid in self.ports.take_touched() {
            self.update_addresses(&uid);
            self.agenda.mark(uid);
        }
    }

    /// How far ports and kernel are with a pod.
    pub(super) fn progress(&self, uid: &PodUid) -> Progress<'_> {
        let leases = self.ports.leases(uid);
        let lacks = |pod: &PodState| pod.lacks_ports(leases);
        let complete = !self.pods.get(uid).is_some_and(lacks);
        // an address that a newer pod owns by now has no rules of this one
        let needed = |pod: &PodState| {
            let mut ips = pod.needed_ips(leases, |ip| self.serves_family(ip));
            ips.all(|ip| self.owns(uid, ip))
        };
        let owned = self.pods.get(uid).is_none_or(needed);
        let reachable = leases.is_empty() || owned && !self.kernel.desired(uid).is_empty();
        let reachable = reachable && self.closed(uid).is_none();
        let own = self.facts(uid).map(|facts| facts.host_ips.as_slice());
        let pod_ips = self.pods.get(uid).map(|pod| pod.ips.as_slice());
        let pod_ips = pod_ips.unwrap_or_default();
        let serves = |host: IpAddr| {
            let same = |ip: &IpAddr| ip.is_ipv4() == host.is_ipv4();
            self.filters_family(host) && (pod_ips.is_empty() || pod_ips.iter().any(same))
        };
        let (node_ip, host_ip) = self.hosts.of_pod(own.unwrap_or_default(), serves);
        Progress {
            leases,
            held: complete && self.ports.all_held(uid),
            owned,
            ruled: reachable && self.kernel.is_intact() && self.kernel.has_rules(uid),
            host_ip,
            node_ip,
        }
    }

    /// The rules that a pod should have.
    pub(super) fn desired_of(&self, uid: &PodUid) -> BTreeSet<Mapping> {
        let Some(pod) = self.pods.get(uid) else {
            return BTreeSet::new();
        };
        let owns = |ip: IpAddr| self.filters_family(ip) && self.owns(uid, ip);
        let mut desired = pod.desired(uid, &self.progress(uid), owns, self.kernel.present(uid));
        desired.retain(|mapping| mapping.host_ip.is_none_or(|ip| self.hosts.answer_at(ip)));
        desired
    }

    /// Whether node and packet filter have the address's family.
    fn serves_family(&self, ip: IpAddr) -> bool {
        self.filters_family(ip) && self.hosts.have_family_of(ip)
    }

    /// Whether the packet filter has the address's family.
    fn filters_family(&self, ip: IpAddr) -> bool {
        self.config.ipv6 || ip.is_ipv4()
    }

    /// Why forwarded packets do not reach the pod, if that is known.
    fn closed(&self, uid: &PodUid) -> Option<&str> {
        self.kernel.closed(uid, |ip| self.serves_family(ip))
    }

    /// Whether traffic to the address reaches this pod and no other.
    fn owns(&self, uid: &PodUid, ip: IpAddr) -> bool {
        let ended = self.addresses.has_ended(uid, ip);
        !ended && self.addresses.owner(ip).is_none_or(|owner| owner == uid)
    }

    /// Ends the leases that the pod does not ask for any more.
    pub(super) fn update_leases(&mut self, now: Duration, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid) else {
            return;
        };
        for lease in pod.surplus(self.ports.leases(uid)) {
            self.end_lease(now, uid, &lease);
        }
    }

    pub(super) fn end_lease(&mut self, now: Duration, uid: &PodUid, lease: &LeasedPort) {
        let (rest, ruled) = (self.config.cooldown, self.kernel.is_ruled(key_of(lease)));
        let pod = self.facts(uid).map(|facts| facts.pod.clone());
        self.ports.end_lease(now, lease, pod.as_ref(), rest, ruled);
    }

    /// Updates why the pod is not mapped. What is in the way before the kernel is named first.
    fn update_refusal(&mut self, now: Duration, uid: &PodUid) {
        let Progress {
            held: complete,
            owned,
            ruled,
            ..
        } = self.progress(uid);
        let (leases, held) = (self.ports.leases(uid), self.ports.all_held(uid));
        let closed = self.closed(uid).map(str::to_owned);
        let host_ip_missing = self.hosts.lacking_for(leases);
        let serves = |ip: IpAddr| self.serves_family(ip);
        let pod = self.pods.get(uid);
        let unservable = pod.and_then(|pod| pod.unservable(leases, serves));
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let possible = host_ip_missing.is_none() && unservable.is_none();
        pod.update_unmapped(now, complete && ruled && possible);
        let is_ours = |key| leases.iter().any(|lease| key_of(lease) == key);
        let is_over = |key| !is_ours(key) || self.ports.is_held(key);
        pod.hold_failure.take_if(|(key, _)| is_over(*key));
        let refusal = |kind, message| Some(Refusal { kind, message });
        match &pod.want {
            Want::Nothing if pod.facts.is_none() => return,
            Want::Nothing => return pod.refusal = None,
            Want::Invalid(invalid) => {
                return pod.refusal = refusal(EventKind::InvalidRequest, invalid.to_string());
            }
            Want::Ports(_) => pod.clear_refusal(EventKind::InvalidRequest),
        }
        if !pod.lacks_ports(leases) {
            pod.clear_refusal(EventKind::NoFreePort);
        }
        if held {
            pod.clear_refusal(EventKind::PortConflict);
        }
        pod.clear_refusal(EventKind::HostIpNotOnNode);
        pod.clear_refusal(EventKind::DataplaneError);
        pod.clear_refusal(EventKind::NotPermitted);
        if pod.refusal.is_some() {
            return;
        }
        if let Some(message) = host_ip_missing {
            return pod.refusal = refusal(EventKind::HostIpNotOnNode, message);
        }
        let mut kind = EventKind::DataplaneError;
        let message = match (unservable, self.kernel.refusal(uid)) {
            (Some(lease), _) => {
                let at = lease.host_ip.map(|ip| format!(" on hostIP {ip}"));
                format!(
                    "container port {}/{}{} cannot be mapped: the pod has no address of a family \
                     that the host addresses and the packet filter of this node serve, too",
                    lease.container_port,
                    lease.protocol,
                    at.unwrap_or_default(),
                )
            }
            (None, Some(error)) => {
                if error.not_permitted {
                    kind = EventKind::NotPermitted;
                }
                format!("the node's rules could not be changed: {}", error.message)
            }
            (None, None) if let Some(((protocol, number), why)) = &pod.hold_failure => format!(
                "host port {number}/{protocol} cannot be held: {why}; the enforcer tries again \
                 every {} s",
                KEEPER_RETRY.as_secs()
            ),
            (None, None) => match (pod.doubt(now, owned, complete), closed) {
                (Some(_), Some(closed)) => closed,
                (None, Some(closed)) if !pod.is_shown_mapped() => closed,
                (Some(doubt), None) => doubt.to_owned(),
                (None, _) => return,
            },
        };
        pod.refusal = refusal(kind, message);
    }

    /// Asks for the pod's write, if one is due.
    fn publish(&mut self, now: Duration, uid: &PodUid) {
        let due = self.pods.get(uid);
        let due = due.and_then(|pod| pod.due_publication(now, &self.progress(uid)));
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.publishing(now, due.as_ref());
        }
        self.actions.extend(due.map(Action::Publish));
    }
}
