//! A pod's result: the ports it has, those that an earlier result names, and those that a forged one names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::annotation::{self, Value};
use portmapping_shared::{HostPort, LeasedPort, RequestedPort, ResultEntry};

use super::facts::Want;
use super::forgery::forged;
use super::state::{PodState, Progress, serves};
use crate::ports::WantedPort;

impl PodState {
    /// The result in the order of the spec; None while a port or an address is missing.
    pub(super) fn result(&self, progress: &Progress<'_>) -> Option<Vec<ResultEntry>> {
        let facts = self.facts.as_ref()?;
        let leases = progress.leases;
        // status.podIP; the kubelet chooses the family of the node's first address for it
        let primary = facts.pod_ips.first().copied().or(progress.node_ip);
        let same = |ip: &&IpAddr| primary.is_some_and(|primary| primary.is_ipv4() == ip.is_ipv4());
        let pod_ip = self.ips.iter().find(same).or(self.ips.first())?.to_string();
        let allocated = |port: &RequestedPort| {
            let lease = leases.iter().find(|lease| serves(lease, port));
            lease.map(|lease| lease.host_port)
        };
        let entry = |port: &RequestedPort| {
            Some(ResultEntry {
                host_port: port.static_host_port.or_else(|| allocated(port))?.get(),
                container_port: port.container_port.get(),
                protocol: port.protocol,
                host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
                pod_name: facts.pod.name.clone(),
                pod_ip: pod_ip.clone(),
            })
        };
        self.want.ports().iter().map(entry).collect()
    }

    /// The ports still to be allocated, each with the host port that an earlier result names.
    ///
    /// Such a result counts only next to our condition: a result that a manifest brings along
    /// chooses no port. It is confirmed where the condition, while it was True, named the same
    /// port, because users who can write annotations cannot write conditions.
    pub(crate) fn wanted_ports(&self, leases: &BTreeSet<LeasedPort>) -> Vec<WantedPort> {
        let name = self.facts.as_ref().map(|facts| &facts.pod.name);
        let record = self.facts.as_ref().map(|facts| &facts.record);
        let shown = record.and_then(|record| record.condition.as_ref());
        let condition = self.confirmed_by.as_ref().or(shown);
        let value = record.and_then(|record| record.annotation.as_deref());
        let value = value.filter(|_| condition.is_some() && !self.forgery.is_found());
        let entries = value.and_then(annotation::decode).unwrap_or_default();
        let wanted = |port: &RequestedPort| {
            let earlier = entries.iter().find(|entry| {
                Some(&entry.pod_name) == name
                    && entry.protocol == port.protocol
                    && entry.container_port == port.container_port.get()
            });
            let confirms = |entry| {
                condition.is_some_and(|c| c.status && c.message.contains(&describe_port(entry)))
            };
            WantedPort {
                previous: earlier.and_then(|entry| HostPort::new(entry.host_port)),
                confirmed: earlier.is_some_and(confirms),
                port: port.clone(),
                matched: None,
            }
        };
        self.unleased(leases).map(wanted).collect()
    }

    /// Checks the result in the API. Returns the note of the event to emit. `first`: the API shows
    /// the pod for the first time.
    ///
    /// A result that we wrote is not forged, however old it is. The same is true for a result of an
    /// earlier enforcer.
    pub(crate) fn check_result(
        &mut self,
        now: Duration,
        leases: &BTreeSet<LeasedPort>,
        first: bool,
    ) -> Option<String> {
        let record = &self.facts.as_ref()?.record;
        let value = record.annotation.clone().unwrap_or_default();
        let ours = self.forgery.written.contains(&value);
        let result = annotation::classify(&value) == Value::Result;
        if ours || !result || !matches!(self.want, Want::Ports(_)) {
            self.forgery.found = None;
            return None;
        }
        if first && self.is_earlier_result(&value, leases) {
            self.forgery.record_written(value);
            return None;
        }
        let Some(foreign) = self.foreign_port(&value, leases) else {
            self.forgery.found = None;
            return None;
        };
        if self.forgery.found.as_ref() == Some(&value) {
            return None;
        }
        self.forgery.found = Some(value);
        self.forgery
            .events
            .record(now)
            .then(|| forged(&foreign, ""))
    }

    /// The first port that a result names and the pod does not have, in words; None where the pod
    /// has all of them.
    pub(super) fn foreign_port(
        &self,
        value: &str,
        leases: &BTreeSet<LeasedPort>,
    ) -> Option<String> {
        let Some(entries) = annotation::decode(value) else {
            return Some("a value that is not a result".to_owned());
        };
        let own = |entry: &&ResultEntry| {
            let key = (entry.protocol, entry.container_port, entry.host_port);
            let same = |lease: &LeasedPort| {
                let (container_port, host_port) = (lease.container_port, lease.host_port);
                (lease.protocol, container_port.get(), host_port.get()) == key
            };
            let given = |port: &RequestedPort| {
                let host_port = port.static_host_port.map_or(0, HostPort::get);
                (port.protocol, port.container_port.get(), host_port) == key
            };
            leases.iter().any(same) || self.want.ports().iter().any(given)
        };
        let foreign = entries.iter().find(|entry| !own(entry))?;
        Some(format!(
            "host port {}/{}",
            foreign.host_port, foreign.protocol
        ))
    }

    /// Whether an earlier enforcer wrote the result in the API. An enforcer writes result and
    /// condition together. After a reboot the pod has no ports to compare with, and any condition
    /// of ours proves it; otherwise a condition that is True must name the same ports.
    pub(super) fn is_earlier_result(&self, value: &str, leases: &BTreeSet<LeasedPort>) -> bool {
        let record = self.facts.as_ref().map(|facts| &facts.record);
        let Some(condition) = record.and_then(|record| record.condition.as_ref()) else {
            return false;
        };
        let entries = annotation::decode(value).unwrap_or_default();
        let message = &condition.message;
        let named = |entry: &ResultEntry| message.contains(&describe_port(entry));
        leases.is_empty()
            || !condition.status
            || entries.iter().all(named)
            || message.ends_with("...")
    }
}

/// `:23817 -> 9040/TCP`: how conditions and events name a port, after its host.
pub(super) fn describe_port(entry: &ResultEntry) -> String {
    format!(
        ":{} -> {}/{}",
        entry.host_port, entry.container_port, entry.protocol
    )
}
