//! Changing from one backend to another on a live node.
//!
//! What an earlier run put into another backend's rules is read first, so that its pods keep their
//! host ports. The new rules go in before the old ones are taken away: no new connection meets a
//! node without either, and connection tracking keeps those that are under way.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use portmapping_shared::{Mapping, Plan};

use super::bridges::Bridges;
use super::exec::{ExecError, Tools};
use super::forward::{Filters, Forward};
use super::generation::Drift;
use super::iptables::{self, Flavour, Iptables, Settings, Subnet};
use super::nftables::{self, Nftables};
use super::{Dataplane, DataplaneError, Look, Observed, Preparations};

/// How long old rules wait for mappings that the new backend refuses; then those pods are without.
const STRAGGLERS: Duration = Duration::from_mins(1);

/// What can carry mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A tree of chains, through either kind of iptables.
    Iptables(Flavour),
    /// A table of maps.
    Nftables,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
        Self::Nftables,
    ];

    /// Name for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables(flavour) => flavour.as_str(),
            Self::Nftables => "nftables",
        }
    }

    /// Whether changes of its rules are announced by the kernel.
    #[must_use]
    pub fn announces(self) -> bool {
        self != Self::Iptables(Flavour::Legacy)
    }

    fn open(
        self,
        settings: &Settings,
        tools: &Tools,
    ) -> Result<Box<dyn Dataplane>, DataplaneError> {
        Ok(match self {
            Self::Iptables(flavour) => {
                Box::new(Iptables::open(flavour, settings.clone(), tools.clone())?)
            }
            Self::Nftables => Box::new(Nftables::open(settings)?),
        })
    }

    /// The mappings that this backend's rules of ours have; None without any rule of ours. A
    /// backend that does not work here was not an earlier run's choice either.
    fn leftovers(self, settings: &Settings, tools: &Tools) -> Option<BTreeSet<Mapping>> {
        let observed = match self {
            Self::Iptables(flavour) => {
                if !iptables::has_traces(flavour, tools) {
                    return None;
                }
                self.open(settings, tools)
                    .and_then(|mut driver| driver.observe())
            }
            Self::Nftables => {
                let mut driver = Nftables::open(settings).ok()?;
                let observed = driver.observe();
                if observed.is_ok() && !driver.has_table() {
                    return None;
                }
                observed
            }
        };
        let mappings = observed.map(|observed| observed.mappings);
        let from = self.as_str();
        Some(mappings.unwrap_or_else(|error| {
            tracing::warn!(%error, from, "rules of an earlier run cannot be read; they will go");
            BTreeSet::new()
        }))
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

impl From<Flavour> for Backend {
    fn from(flavour: Flavour) -> Self {
        Self::Iptables(flavour)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A backend that takes over from the others.
pub struct Moving {
    to: Box<dyn Dataplane>,
    tools: Tools,
    opened: Instant,
    from: Vec<Backend>,
    elsewhere: BTreeSet<Mapping>,
    /// Those of them that could not be made here yet.
    refused: BTreeSet<Mapping>,
    /// Whether anything was applied since the opening.
    begun: bool,
    /// The nftables driver runs no programs, so a FORWARD chain that drops is looked after here.
    forward: Option<Forward>,
    /// None where a person has named the neighbours.
    bridges: Option<Bridges>,
    in_use: bool,
}

impl Moving {
    /// Opens a backend, and reads what an earlier run left in the others. Changes nothing.
    pub fn open(
        backend: Backend,
        settings: &Settings,
        tools: Tools,
    ) -> Result<Self, DataplaneError> {
        let to = backend.open(settings, &tools)?;
        let mut from = Vec::new();
        let mut elsewhere = BTreeSet::new();
        for other in Backend::ALL.into_iter().filter(|other| *other != backend) {
            if let Some(mappings) = other.leftovers(settings, &tools) {
                let (from_name, count) = (other.as_str(), mappings.len());
                tracing::info!(
                    from = from_name,
                    to = to.name(),
                    mappings = count,
                    "taking over"
                );
                from.push(other);
                elsewhere.extend(mappings);
            }
        }
        let forward = (backend == Backend::Nftables)
            .then(|| Forward::new(settings.range, &settings.excluded, &tools));
        Ok(Self {
            to,
            tools,
            opened: Instant::now(),
            from,
            elsewhere,
            refused: BTreeSet::new(),
            begun: false,
            forward,
            bridges: settings.neighbours.is_empty().then(Bridges::default),
            in_use: false,
        })
    }

    /// The mappings that other backends' rules have.
    #[must_use]
    pub fn elsewhere(&self) -> &BTreeSet<Mapping> {
        &self.elsewhere
    }

    /// Looks for bridges whose packets pass no rules; whether something about them is new.
    fn find_neighbours(&mut self) -> bool {
        let Some(found) = self.bridges.as_mut().and_then(Bridges::refresh) else {
            return false;
        };
        let subnets: Vec<String> = found.iter().map(ToString::to_string).collect();
        tracing::info!(
            subnets = subnets.join(","),
            "pods that share a bridge past the rules"
        );
        self.to.set_neighbours(found);
        true
    }

    /// Where the node's bridges have changed, so do the rules. They were right until then, so this is
    /// no damage to be told of.
    fn with_neighbours(&mut self, observed: Observed) -> Result<Observed, DataplaneError> {
        if !self.find_neighbours() || observed.mappings.is_empty() {
            return Ok(observed);
        }
        self.to.apply(&Plan::default())?;
        self.to.observe()
    }

    /// Adds to what the backend saw what is looked after here.
    fn seen(&mut self, mut observed: Observed, filters: Option<Filters>) -> Observed {
        self.in_use = !observed.mappings.is_empty();
        if let (Some(forward), Some(filters)) = (&mut self.forward, filters) {
            observed.intact &= forward.observe(filters, self.in_use);
        }
        // makes the reconciler act even if no pod wants anything
        observed.intact &= self.begun || self.from.is_empty();
        self.sweep();
        observed
    }

    /// Takes the old rules away once everything is here. A failure is no failure of the mappings,
    /// and is tried again.
    fn sweep(&mut self) {
        let waiting = !self.refused.is_empty() && self.opened.elapsed() < STRAGGLERS;
        if self.from.is_empty() || !self.begun || waiting {
            return;
        }
        let to = self.to.name();
        self.from.retain(|old| match old.sweep(&self.tools) {
            Ok(()) => {
                tracing::info!(from = old.as_str(), to, "mappings moved over");
                false
            }
            Err(error) => {
                let from = old.as_str();
                tracing::warn!(%error, from, "our rules of an earlier run are still there");
                true
            }
        });
    }
}

impl Dataplane for Moving {
    fn name(&self) -> &'static str {
        self.to.name()
    }

    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        let filters = self.forward.as_ref().map(|forward| {
            let mut filters = forward.filters();
            filters.read();
            filters
        });
        let observed = self.to.observe()?;
        let observed = self.with_neighbours(observed)?;
        Ok(self.seen(observed, filters))
    }

    fn look(&mut self) -> Look {
        let mut look = self.to.look();
        if let Some(forward) = &self.forward {
            look.filters = Some(forward.filters());
        }
        look
    }

    fn looked(&mut self, mut look: Look) -> Result<Option<Observed>, DataplaneError> {
        let own = self.forward.is_some();
        let filters = if own { look.filters.take() } else { None };
        let Some(observed) = self.to.looked(look)? else {
            return Ok(None);
        };
        let observed = self.with_neighbours(observed)?;
        Ok(Some(self.seen(observed, filters)))
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
                } else if self.elsewhere.contains(mapping) {
                    self.refused.insert(mapping.clone());
                }
            }
        }
        applied?;
        self.begun = true;
        self.in_use |= !plan.to_create.is_empty();
        if let Some(forward) = &mut self.forward {
            forward.apply(self.in_use);
        }
        self.sweep();
        Ok(())
    }

    fn set_neighbours(&mut self, neighbours: &[Subnet]) {
        self.bridges = None;
        self.to.set_neighbours(neighbours);
    }

    fn preparations(&self) -> Preparations {
        self.to.preparations()
    }

    fn has_ipv6(&self) -> bool {
        self.to.has_ipv6()
    }

    fn drift(&self) -> Drift {
        self.to.drift()
    }

    fn clear_failures(&self) -> u64 {
        self.to.clear_failures()
    }

    fn uninstall(&mut self) -> Result<(), DataplaneError> {
        let own = self.to.uninstall();
        let others = uninstall(&self.tools);
        DataplaneError::collect(own.err().into_iter().chain(others.err()).collect())
    }
}

/// Removes everything of ours, whichever backend put it there, going on past failures.
pub fn uninstall(tools: &Tools) -> Result<(), DataplaneError> {
    let table = nftables::uninstall();
    let chains = match iptables::uninstall(tools) {
        Err(error) if error.is_missing_programs() && !nftables::may_have_iptables_chains() => {
            tracing::debug!(%error, "no iptables, and no chains of ours in the kernel");
            Ok(())
        }
        chains => chains,
    };
    DataplaneError::collect(table.err().into_iter().chain(chains.err()).collect())
}

impl DataplaneError {
    /// Whether all that failed is that programs are not installed.
    fn is_missing_programs(&self) -> bool {
        match self {
            Self::Exec(ExecError::Missing { .. }) => true,
            Self::Several(errors) => errors.iter().all(Self::is_missing_programs),
            _ => false,
        }
    }
}
