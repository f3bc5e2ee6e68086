//! A pod's result: what it is, and whose the one in the API is.

use portmapping_shared::annotation;
use portmapping_shared::{HostPort, LeasedPort, RequestedPort, ResultEntry};

use super::state::{PodState, Want, serves};

/// Annotations remembered as written by us: more than a watch can be behind.
const MAX_WRITTEN: usize = 8;

impl PodState {
    /// The result in spec order; None while a port or an address is missing.
    pub(crate) fn result(&self) -> Option<Vec<ResultEntry>> {
        let (Some(facts), Want::Ports(request)) = (&self.facts, &self.want) else {
            return None;
        };
        let pod_ip = self.ips.first()?.to_string();
        let entry = |port: &RequestedPort| {
            let host_port = match port.static_host_port {
                Some(host_port) => host_port,
                None => {
                    self.lease
                        .keys()
                        .find(|lease| serves(lease, port))?
                        .host_port
                }
            };
            Some(ResultEntry {
                host_port: host_port.get(),
                container_port: port.container_port.get(),
                protocol: port.protocol,
                host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
                pod_name: facts.pod.name.clone(),
                pod_ip: pod_ip.clone(),
            })
        };
        request.ports.iter().map(entry).collect()
    }

    /// Host ports an earlier result in the annotation claims, per (protocol, container port): a
    /// preference to have the same again, worth nothing if the port is not free. Only beside our
    /// condition: a result that its creator wrote into the manifest chooses no port.
    pub(crate) fn previous_port(&self, port: &RequestedPort) -> Option<HostPort> {
        HostPort::new(self.claim(port)?.host_port)
    }

    /// The same where the condition says it too, as it did while the pod was mapped: who can write
    /// annotations cannot write conditions.
    pub(crate) fn confirmed_previous_port(&self, port: &RequestedPort) -> Option<HostPort> {
        let entry = self.claim(port)?;
        let condition = self.facts.as_ref()?.record.condition.as_ref()?;
        let confirmed = condition.status && condition.message.contains(&describe_port(&entry));
        HostPort::new(entry.host_port).filter(|_| confirmed)
    }

    fn claim(&self, port: &RequestedPort) -> Option<ResultEntry> {
        let facts = self.facts.as_ref()?;
        facts.record.condition.as_ref()?;
        let entries = annotation::decode(facts.record.annotation.as_deref()?)?;
        entries.into_iter().find(|entry| {
            entry.pod_name == facts.pod.name
                && entry.protocol == port.protocol
                && entry.container_port == port.container_port.get()
        })
    }

    /// The first port that a result names and this pod does not have, in words; None where it
    /// names only ports of this pod.
    pub(crate) fn foreign_claim(&self, value: &str) -> Option<String> {
        let Some(entries) = annotation::decode(value) else {
            return Some("something that is no result".to_owned());
        };
        let fixed = match &self.want {
            Want::Ports(request) => request.ports.as_slice(),
            Want::Nothing | Want::Invalid(_) => &[],
        };
        let own = |entry: &&ResultEntry| {
            let key = (entry.protocol, entry.container_port, entry.host_port);
            let leased = |lease: &LeasedPort| {
                (
                    lease.protocol,
                    lease.container_port.get(),
                    lease.host_port.get(),
                ) == key
            };
            let given = |port: &RequestedPort| {
                let host_port = port.static_host_port.map_or(0, HostPort::get);
                (port.protocol, port.container_port.get(), host_port) == key
            };
            self.lease.keys().any(leased) || fixed.iter().any(given)
        };
        let foreign = entries.iter().find(|entry| !own(entry))?;
        Some(format!(
            "host port {}/{}",
            foreign.host_port, foreign.protocol
        ))
    }

    /// Whether the result in the API is an earlier enforcer's: with its ports gone (a reboot) any
    /// condition of ours beside it will do, for both are written together; while they are known, a
    /// condition that is True must name the same ports.
    pub(crate) fn is_earlier_result(&self) -> bool {
        let record = self.facts.as_ref().map(|facts| &facts.record);
        let Some(condition) = record.and_then(|record| record.condition.as_ref()) else {
            return false;
        };
        let value = record.and_then(|record| record.annotation.as_deref());
        let entries = annotation::decode(value.unwrap_or_default()).unwrap_or_default();
        let message = &condition.message;
        let named = |entry: &ResultEntry| message.contains(&describe_port(entry));
        self.lease.is_empty()
            || !condition.status
            || entries.iter().all(named)
            || message.ends_with("...")
    }

    /// Remembers an annotation as ours.
    pub(crate) fn record_written(&mut self, value: String) {
        self.written.retain(|known| *known != value);
        self.written.push_back(value);
        if self.written.len() > MAX_WRITTEN {
            self.written.pop_front();
        }
    }
}

/// `:23817 -> 9040/TCP`: how conditions and events name a port, behind its host.
pub(crate) fn describe_port(entry: &ResultEntry) -> String {
    format!(
        ":{} -> {}/{}",
        entry.host_port, entry.container_port, entry.protocol
    )
}
