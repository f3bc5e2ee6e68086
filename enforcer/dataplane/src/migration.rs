//! Moves mappings from one backend to another on a live node.
//!
//! The mappings of an earlier run in another backend are read first, so that its pods keep their
//! host ports. The new rules are made before the old ones are removed, so that every new connection
//! matches one of them. Connection tracking keeps the existing connections.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use portmapping_shared::{Mapping, Plan, PortKey};

use super::backend::Backend;
use super::bridges::Bridges;
use super::change_monitor::ChangeMonitor;
use super::conntrack::StaleFlows;
use super::exec::Tools;
use super::flavour::Flavour;
use super::forward::Forward;
use super::host_addresses::HostAddresses;
use super::iptables::{self, Iptables, SavedTables};
use super::nftables::{self, Nftables};
use super::settings::Settings;
use super::snapshot::Snapshot;
use super::subnet::Subnet;
use super::uninstall;
use super::{Dataplane, DataplaneError, Observed};

/// How long old rules stay for mappings that the new backend refuses; then those pods are unmapped.
const REFUSED_FOR: Duration = Duration::from_mins(1);

impl Backend {
    /// Opens the driver, for iptables from the tables that were read, and returns its mappings.
    fn open(
        self,
        settings: &Settings,
        tools: &Tools,
        saved: Option<SavedTables>,
    ) -> Result<(Box<dyn Dataplane>, Observed), DataplaneError> {
        if let (Self::Iptables(_), Some(saved)) = (self, saved) {
            let (driver, observed) = Iptables::open(settings.clone(), tools.clone(), saved)?;
            return Ok((Box::new(driver), observed));
        }
        let mut driver = Nftables::open(settings)?;
        let observed = driver.observe()?;
        Ok((Box::new(driver), observed))
    }

    fn sweep(self, tools: &Tools) -> Result<(), DataplaneError> {
        match self {
            Self::Iptables(flavour) => {
                DataplaneError::collect(iptables::uninstall_flavour(flavour, tools))
            }
            Self::Nftables => nftables::uninstall(),
        }
    }
}

/// A backend that takes over the mappings of the others.
pub struct BackendMigration {
    backend: Backend,
    to: Box<dyn Dataplane>,
    tools: Tools,
    opened: Instant,
    from: Vec<Backend>,
    in_other_backends: BTreeSet<Mapping>,
    /// Those of them that this backend could not make yet.
    refused: BTreeSet<Mapping>,
    /// Whether anything was applied since this was opened.
    begun: bool,
    /// Needed with every backend: a FORWARD chain may drop the packets of each.
    forward: Forward,
    /// None if the configuration names the neighbours.
    bridges: Option<Bridges>,
    masquerade: bool,
    /// What `masquerade` becomes with the next observation.
    next_masquerade: Option<bool>,
    static_ports: Option<BTreeSet<PortKey>>,
    /// What `static_ports` becomes with the next observation.
    next_static_ports: Option<BTreeSet<PortKey>>,
    host_addresses: HostAddresses,
    /// Whether there are mappings, or are to be.
    in_use: bool,
}

impl BackendMigration {
    /// Opens a backend from the snapshot, and returns its mappings as well. Mappings of other
    /// backends are in [`Self::in_other_backends`]. Changes no rule: an enforcer that only rehearses
    /// its start opens one, too.
    pub fn open(
        backend: Backend,
        settings: &Settings,
        tools: Tools,
        snapshot: Snapshot,
    ) -> Result<(Self, Observed), DataplaneError> {
        let mut forward = Forward::new(settings.range, &settings.excluded, &tools);
        forward.take(&snapshot);
        // until the Node object is read, the rules that were found keep their addresses
        let mut named = settings.host_addresses.clone();
        named.extend(snapshot.host_addresses());
        let mut host_addresses = HostAddresses::new(
            settings.selection.clone(),
            settings.host_addresses.clone(),
            named,
        );
        host_addresses.refresh();
        log_addresses(host_addresses.current());
        // known before the rules are compared: those for neighbours must not look like damage
        let mut bridges = settings.neighbours.is_empty().then(Bridges::default);
        let found = bridges.as_mut().and_then(Bridges::refresh);
        if let Some(found) = found {
            log_neighbours(found);
        }
        let settings = Settings {
            host_addresses: host_addresses.current().clone(),
            neighbours: found.unwrap_or(&settings.neighbours).to_vec(),
            ..settings.clone()
        };
        let saved = match backend {
            Backend::Iptables(Flavour::Nft) => Some(snapshot.nft),
            Backend::Iptables(Flavour::Legacy) => Some(snapshot.legacy),
            Backend::Nftables => None,
        };
        let (to, observed) = backend.open(&settings, &tools, saved)?;
        let mut from = Vec::new();
        let mut in_other_backends = BTreeSet::new();
        for (other, found) in snapshot.leftovers {
            if other == backend {
                continue;
            }
            tracing::info!(
                from = other.as_str(),
                to = to.name(),
                mappings = found.mappings.len(),
                "moving mappings of an earlier run to this backend"
            );
            from.push(other);
            in_other_backends.extend(found.mappings);
        }
        let mut migration = Self {
            backend,
            to,
            tools,
            opened: Instant::now(),
            from,
            in_other_backends,
            refused: BTreeSet::new(),
            begun: false,
            forward,
            bridges,
            masquerade: settings.masquerade,
            next_masquerade: None,
            static_ports: None,
            next_static_ports: None,
            host_addresses,
            in_use: false,
        };
        let observed = migration.complete(observed);
        Ok((migration, observed))
    }

    /// Returns the mappings in the rules of other backends.
    #[must_use]
    pub fn in_other_backends(&self) -> &BTreeSet<Mapping> {
        &self.in_other_backends
    }

    /// Reads the bridges whose packets pass no rules. Returns whether they have changed.
    fn find_neighbours(&mut self) -> bool {
        let Some(found) = self.bridges.as_mut().and_then(Bridges::refresh) else {
            return false;
        };
        log_neighbours(found);
        self.to.set_neighbours(found);
        true
    }

    /// Reads the node's addresses. Returns whether the host addresses have changed.
    fn find_host_addresses(&mut self) -> bool {
        let Some(found) = self.host_addresses.refresh() else {
            return false;
        };
        log_addresses(found);
        self.to.set_host_addresses(found);
        true
    }

    /// Returns whether what is masqueraded has changed.
    fn change_masquerade(&mut self) -> bool {
        let next = self.next_masquerade.take();
        let Some(on) = next.filter(|on| *on != self.masquerade) else {
            return false;
        };
        self.masquerade = on;
        self.to.set_masquerade(on);
        true
    }

    /// Returns whether the static host ports have changed.
    fn change_static_ports(&mut self) -> bool {
        let next = self.next_static_ports.take();
        let Some(ports) = next.filter(|ports| self.static_ports.as_ref() != Some(ports)) else {
            return false;
        };
        self.to.set_static_ports(&ports);
        self.static_ports = Some(ports);
        true
    }

    /// Changes the rules if something of the node, or what is masqueraded, has changed. The rules were
    /// correct before, so this is not reported as damage.
    fn with_node(&mut self, observed: Observed) -> Result<Observed, DataplaneError> {
        let changed = self.find_neighbours() | self.find_host_addresses();
        if !(changed | self.change_masquerade() | self.change_static_ports()) {
            return Ok(observed);
        }
        self.to.apply(&Plan::default())?;
        self.to.observe()
    }

    /// Records whether there are mappings. Rules that another program removed come back: FORWARD stays
    /// open for their connections.
    fn use_of(&mut self, observed: &Observed) {
        self.in_use |= !observed.mappings.is_empty();
        self.in_use |= !self.begun && !self.in_other_backends.is_empty();
    }

    /// Adds the state of FORWARD and of the migration to what the backend has read.
    fn complete(&mut self, mut observed: Observed) -> Observed {
        self.use_of(&observed);
        observed.intact &= self.forward.is_open(self.in_use);
        observed.obstacles = self.forward.obstacles();
        if let Backend::Iptables(flavour) = self.backend {
            observed.unprintable = self.forward.unprintable(flavour);
        }
        // makes the reconciler act even if no pod needs a mapping
        observed.intact &= self.begun || self.from.is_empty();
        observed
            .host_addresses
            .clone_from(self.host_addresses.current());
        self.sweep();
        observed
    }

    /// Removes the old rules once this backend has all mappings. A failure does not affect the
    /// mappings, and the removal is tried again.
    fn sweep(&mut self) {
        let waiting = !self.refused.is_empty() && self.opened.elapsed() < REFUSED_FOR;
        if self.from.is_empty() || !self.begun || waiting {
            return;
        }
        let to = self.to.name();
        self.from.retain(|old| match old.sweep(&self.tools) {
            Ok(()) => {
                tracing::info!(from = old.as_str(), to, "our rules of another backend are removed");
                false
            }
            Err(error) => {
                let from = old.as_str();
                tracing::warn!(%error, from, "cannot remove our rules of another backend; trying again at the next check");
                true
            }
        });
    }
}

fn log_neighbours(subnets: &[Subnet]) {
    let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
    tracing::info!(
        subnets = subnets.join(","),
        "connections between pods of these subnets are masqueraded"
    );
}

fn log_addresses(host_addresses: &BTreeSet<IpAddr>) {
    let addresses: Vec<String> = host_addresses.iter().map(ToString::to_string).collect();
    tracing::info!(
        addresses = addresses.join(","),
        "mapped ports answer at these addresses"
    );
}

impl Dataplane for BackendMigration {
    fn name(&self) -> &'static str {
        self.to.name()
    }

    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        let observed = self.to.observe()?;
        let observed = self.with_node(observed)?;
        self.forward.read();
        self.use_of(&observed);
        self.forward.tidy(self.in_use);
        Ok(self.complete(observed))
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        let mut pods = plan.to_create.iter().map(|mapping| mapping.pod_ip);
        if self
            .bridges
            .as_ref()
            .is_some_and(|known| !pods.all(|pod| known.cover(pod)))
        {
            self.find_neighbours();
        }
        let applied = self.to.apply(plan);
        if !self.from.is_empty() {
            for mapping in &plan.to_create {
                if applied.is_ok() {
                    self.refused.remove(mapping);
                } else if self.in_other_backends.contains(mapping) {
                    self.refused.insert(mapping.clone());
                }
            }
        }
        applied?;
        self.begun = true;
        self.in_use = plan.unchanged > 0 || !plan.to_create.is_empty();
        self.forward.apply(self.in_use);
        self.sweep();
        Ok(())
    }

    fn set_neighbours(&mut self, neighbours: &[Subnet]) {
        self.bridges = None;
        self.to.set_neighbours(neighbours);
    }

    /// The next observation changes the rules.
    fn set_masquerade(&mut self, on: bool) {
        self.next_masquerade = Some(on);
    }

    /// Sets the addresses that the Node object names. The next observation takes those that are
    /// local, if `--host-addresses` is `node`.
    fn set_host_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.host_addresses.set_named(addresses.clone());
    }

    /// The next observation changes the rules.
    fn set_static_ports(&mut self, ports: &BTreeSet<PortKey>) {
        self.next_static_ports = Some(ports.clone());
    }

    fn has_ipv6(&self) -> bool {
        self.to.has_ipv6()
    }

    fn changes(&self) -> ChangeMonitor {
        self.to.changes()
    }

    fn stale_flows(&self) -> StaleFlows {
        self.to.stale_flows()
    }

    fn uninstall(&mut self) -> Result<(), DataplaneError> {
        let own = self.to.uninstall();
        let others = uninstall::uninstall(&self.tools);
        DataplaneError::collect(own.err().into_iter().chain(others.err()).collect())
    }
}
