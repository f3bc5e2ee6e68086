//! The container runtime: sandboxes are created and removed, and files say so.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use portmapping_enforcer_core::{Sandbox, SandboxId, SandboxUpdate};
use portmapping_shared::PodUid;
use rand::RngExt;

use crate::world::{EPOCH, World};

const ADDRESSES: u8 = 8;
/// Begins the uid of a pod that left a result behind.
pub(crate) const LEFTOVER: &str = "leftover";

impl World {
    /// A pod gets its first sandbox, or another one because the last one ended.
    pub(crate) fn start_sandbox(&mut self) {
        if let Some(uid) = self.random_pod() {
            self.start_sandbox_of(&uid);
        }
    }

    pub(crate) fn start_sandbox_of(&mut self, uid: &PodUid) {
        if self.pods.get(uid).is_none_or(|facts| facts.finished) {
            return;
        }
        if self.living.contains_key(uid) {
            self.seen.sandboxes_moved += 1;
        }
        self.stop_sandbox_of(uid);
        let has = |ips: &[IpAddr], v4: Ipv4Addr| {
            ips.contains(&v4.into()) || ips.contains(&v4.to_ipv6_compatible().into())
        };
        let taken = |ip: Ipv4Addr| self.living.values().any(|other| has(&other.ips, ip));
        let free = (0..ADDRESSES).map(|n| Ipv4Addr::new(10, 244, 0, n));
        let free: Vec<Ipv4Addr> = free.filter(|ip| !taken(*ip)).collect();
        if free.is_empty() {
            return;
        }
        let ip = free[self.rng.random_range(0..free.len())];
        self.next += 1;
        let facts = self.pods.get(uid);
        let runtime_uid = facts.and_then(|facts| facts.runtime_uid.clone());
        self.seen.static_pods += u64::from(runtime_uid.is_some());
        let sandbox = Sandbox {
            uid: runtime_uid.unwrap_or_else(|| uid.clone()),
            id: format!("s{}", self.next).parse().expect("an id"),
            ips: self.addresses(ip),
            written: self.write_time(),
        };
        self.record(|| format!("sandbox {} of {uid} {ip}", sandbox.id));
        self.living.insert(uid.clone(), sandbox.clone());
        self.write_result(sandbox);
    }

    pub(crate) fn stop_sandbox(&mut self) {
        if let Some(uid) = self.random_pod() {
            self.stop_sandbox_of(&uid);
        }
    }

    pub(crate) fn stop_sandbox_of(&mut self, uid: &PodUid) {
        let facts = self.pods.get(uid);
        let runtime_uid = facts.and_then(|facts| facts.runtime_uid.as_ref());
        let ended: Vec<SandboxId> = self
            .files
            .values()
            .filter(|file| file.uid == *runtime_uid.unwrap_or(uid))
            .map(|file| file.id.clone())
            .collect();
        self.living.remove(uid);
        for id in ended {
            self.record(|| format!("no sandbox {id} of {uid}"));
            self.files.remove(&id);
            self.updates.push(SandboxUpdate::Down(id));
        }
    }

    fn write_result(&mut self, sandbox: Sandbox) {
        if self.writes_results {
            self.files.insert(sandbox.id.clone(), sandbox.clone());
            self.updates.push(SandboxUpdate::Up(sandbox));
        }
    }

    fn addresses(&mut self, v4: Ipv4Addr) -> Vec<IpAddr> {
        let mut ips = vec![v4];
        if self.two_addresses {
            self.seen.two_addresses += 1;
            ips.push(Ipv4Addr::from_bits(v4.to_bits() + 256));
        }
        let [has_v4, has_v6] = self.families;
        self.seen.ipv6_alone += u64::from(!has_v4);
        let v6 = ips.iter().map(|ip| IpAddr::V6(ip.to_ipv6_compatible()));
        let v6: Vec<IpAddr> = v6.filter(|_| has_v6).collect();
        let v4 = ips.into_iter().map(IpAddr::V4).filter(|_| has_v4);
        v4.chain(v6).collect()
    }

    /// Each result is later than the one before, whatever the clock does.
    fn write_time(&self) -> Duration {
        EPOCH + self.now + Duration::from_nanos(self.next.into())
    }

    /// An administrator removes all results; the sandboxes live on.
    pub(crate) fn wipe_results(&mut self) {
        self.record(|| "results wiped".to_owned());
        self.seen.wiped += 1;
        let gone = std::mem::take(&mut self.files).into_keys();
        self.updates.extend(gone.map(SandboxUpdate::Down));
    }

    /// A result of a pod that the API never shows names an address: a leftover from before any pod
    /// was created, or a result of now, whose pod the API does not show yet.
    pub(crate) fn write_unknown_result(&mut self) {
        self.next += 1;
        let leftover = self.rng.random_range(0..2) == 0;
        let ip = Ipv4Addr::new(10, 244, 0, self.rng.random_range(0..ADDRESSES));
        let kind = if leftover { LEFTOVER } else { "unknown" };
        let written = Duration::from_nanos(self.next.into());
        let sandbox = Sandbox {
            uid: format!("{kind}-{}", self.next).parse().expect("a uid"),
            id: format!("u{}", self.next).parse().expect("an id"),
            ips: self.addresses(ip),
            written: if leftover { written } else { self.write_time() },
        };
        self.seen.leftovers += u64::from(leftover);
        self.seen.unknown += u64::from(!leftover);
        self.record(|| format!("{sandbox:?}"));
        self.write_result(sandbox);
    }

    /// A result is written again; or a hostile one, which names another pod's address.
    pub(crate) fn repeat_result(&mut self) {
        let count = self.files.len();
        if count == 0 {
            return;
        }
        let (one, other) = (
            self.rng.random_range(0..count),
            self.rng.random_range(0..count),
        );
        let nth = |n| self.files.values().nth(n).cloned();
        let (Some(mut sandbox), Some(other)) = (nth(one), nth(other)) else {
            return;
        };
        if self.rng.random_range(0..3) == 0 {
            self.next += 1;
            sandbox.id = format!("h{}", self.next).parse().expect("an id");
            sandbox.ips = other.ips;
            sandbox.written = self.write_time();
            self.record(|| {
                format!(
                    "hostile {} of {} {:?}",
                    sandbox.id, sandbox.uid, sandbox.ips
                )
            });
        }
        self.write_result(sandbox);
    }

    /// All updates arrive.
    pub(crate) fn deliver_results(&mut self) {
        while !self.updates.is_empty() {
            self.deliver_result();
            self.collect();
        }
    }

    /// One update arrives. Updates of one sandbox stay in order, those of several do not.
    pub(crate) fn deliver_result(&mut self) {
        if self.updates.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.updates.len());
        let list = |update: &SandboxUpdate| matches!(update, SandboxUpdate::Listed(_));
        let before = &self.updates[..=at];
        // a list replaces all that came before it
        let at = match before.iter().position(list) {
            Some(_) => 0,
            None => before
                .iter()
                .position(|update| id_of(update) == id_of(&self.updates[at]))
                .unwrap_or(at),
        };
        let update = self.updates.remove(at);
        self.reference.record(self.now, &update);
        match update {
            SandboxUpdate::Up(sandbox) => self.state.sandbox_up(self.now, sandbox),
            SandboxUpdate::Down(id) => self.state.sandbox_down(self.now, &id),
            SandboxUpdate::Listed(all) => self.state.sandboxes_listed(self.now, all),
        }
    }

    /// The queue of updates overflows: its content is lost, and all files are read.
    pub(crate) fn overflow(&mut self) {
        self.record(|| "overflow".to_owned());
        self.updates.clear();
        self.list_results();
    }

    pub(crate) fn list_results(&mut self) {
        if self.writes_results {
            let all = self.files.values().cloned().collect();
            self.updates.push(SandboxUpdate::Listed(all));
        }
    }
}

fn id_of(update: &SandboxUpdate) -> Option<&SandboxId> {
    match update {
        SandboxUpdate::Up(sandbox) => Some(&sandbox.id),
        SandboxUpdate::Down(id) => Some(id),
        SandboxUpdate::Listed(_) => None,
    }
}
