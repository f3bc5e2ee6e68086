//! The iptables driver: chains of port ranges in table nat, for IPv4 and IPv6, and a few rules in
//! table mangle.
//!
//! This backend is for compatibility. Its cost grows with the number of mappings and is measured
//! with 2,000. `observe` reads `iptables-save`; `apply` is one `iptables-restore --noflush` per
//! family, which writes only the chains that change. It never names chains or rules of others.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use portmapping_shared::{Mapping, Plan, PortKey};

use super::change_monitor::{ChangeMonitor, GenerationSocket};
use super::conntrack::StaleFlows;
use super::exec::Tools;
use super::family::Family;
use super::flavour::Flavour;
use super::settings::Settings;
use super::subnet::Subnet;
use super::{Dataplane, DataplaneError, Observed};

pub(crate) mod commands;
mod family_rules;
mod invalid;
mod jumps;
mod layout;
mod older;
mod reading;
mod rehearsal;
mod rule;
mod save;
mod saved_tables;
#[cfg(test)]
mod testing;
mod transaction;
mod uninstall;

use commands::Commands;
use family_rules::{FamilyRules, Reading};
use layout::Layout;
use reading::Known;
pub(crate) use rehearsal::rehearse;
pub use saved_tables::SavedTables;
pub(crate) use uninstall::uninstall_flavour;

/// A program that puts its rules before the same jump again within this time after it was moved does
/// so each time. Felix of Calico looks every 5 s to 180 s.
const CONTEST: Duration = Duration::from_mins(10);

/// Mappings as iptables rules.
#[derive(Debug)]
pub struct Iptables {
    flavour: Flavour,
    tools: Tools,
    ipv4: FamilyRules,
    /// The IPv6 rules, or the reason why there are none.
    ipv6: Result<FamilyRules, String>,
    stale_flows: StaleFlows,
    monitor: ChangeMonitor,
    generation: GenerationSocket,
    /// The generation at the last read. While it is the current one, the rules are unchanged.
    read_at: Option<u32>,
    /// The jumps that were made the first rules again, and when.
    moved: BTreeMap<(Family, &'static str), Instant>,
}

impl Iptables {
    /// Opens the driver from tables that were read already, and changes nothing. Also returns what
    /// they have of ours. Without ip6tables the driver maps IPv4 only, and logs this once.
    pub fn open(
        settings: Settings,
        tools: Tools,
        saved: SavedTables,
    ) -> Result<(Self, Observed), DataplaneError> {
        let SavedTables {
            flavour,
            generation,
            ipv4,
            ipv6,
            ..
        } = saved;
        let rules = |family, settings| {
            FamilyRules::new(Commands::new(family, flavour, tools.clone()), settings)
        };
        let (v4_text, v6_text) = (ipv4?, ipv6);
        let stale_flows = StaleFlows::new(&settings.host_addresses);
        let ipv4 = rules(Family::V4, settings.clone());
        let (ipv6, v6_text) = match v6_text {
            Ok(text) => (Ok(rules(Family::V6, settings)), text),
            Err(error) => {
                tracing::warn!(%error, "ip6tables cannot be used; only IPv4 pods are mapped");
                (Err(error.to_string()), String::new())
            }
        };
        let mut driver = Self {
            flavour,
            tools,
            ipv4,
            ipv6,
            stale_flows,
            monitor: ChangeMonitor::default(),
            generation: GenerationSocket::default(),
            read_at: None,
            moved: BTreeMap::new(),
        };
        driver.ipv4.take_invalid(&v4_text);
        if let Ok(ipv6) = &mut driver.ipv6 {
            ipv6.take_invalid(&v6_text);
        }
        let (observed, _) = driver.take(generation, Duration::ZERO, &v4_text, &v6_text);
        Ok((driver, observed))
    }

    /// Returns the current generation; None for iptables-legacy, which has no generations.
    fn current_generation(&mut self) -> Option<u32> {
        let nft = self.flavour == Flavour::Nft;
        nft.then(|| self.generation.current()).flatten()
    }

    /// Returns what was read last, if nothing has changed since.
    fn unchanged(&self, generation: Option<u32>) -> Option<Observed> {
        if generation.is_none() || generation != self.read_at {
            return None;
        }
        let mut observed = self.ipv4.observed()?;
        if let Ok(ipv6) = &self.ipv6 {
            observed.add(ipv6.observed()?);
        }
        Some(observed)
    }

    /// Records what was read. Also returns whether it is not intact only because rules of other
    /// programs come before our jumps.
    fn take(
        &mut self,
        generation: Option<u32>,
        took: Duration,
        ipv4: &str,
        ipv6: &str,
    ) -> (Observed, bool) {
        let mut readings = vec![self.ipv4.take(ipv4)];
        if let Ok(rules) = &mut self.ipv6 {
            readings.push(rules.take(ipv6));
        }
        let altered = readings.iter().any(|reading| reading.altered);
        let complete = |reading: &Reading| reading.observed.intact || reading.only_order;
        let only_order = readings.iter().all(complete) && readings.iter().any(|r| r.only_order);
        let mut observed = Observed {
            intact: true,
            ..Observed::default()
        };
        for reading in readings {
            observed.add(reading.observed);
        }
        self.read_at = generation;
        self.monitor.record_read(generation, took, altered);
        (observed, only_order)
    }

    /// Makes our jumps the first rules of their chains again. CNI portmap puts its jump first when a
    /// node gets its first static host port. No mapping was missing, so this is not reported as
    /// damage; after a failure it is, and the reconciler tries again.
    fn restore_order(&mut self, observed: &mut Observed) {
        let mut displaced = self.ipv4.displaced();
        displaced.extend(self.ipv6.iter().flat_map(FamilyRules::displaced));
        let again = |jump: &(Family, &'static str)| {
            self.moved
                .get(jump)
                .is_some_and(|at| at.elapsed() < CONTEST)
        };
        if displaced.iter().any(again) {
            return self.give_way(observed);
        }
        let now = Instant::now();
        self.moved
            .extend(displaced.into_iter().map(|jump| (jump, now)));
        match self.apply(&Plan::default()) {
            Ok(()) => {
                observed.intact = true;
                tracing::info!(
                    "another program put rules before our jumps in table nat; the jumps are first again"
                );
            }
            Err(error) => {
                tracing::warn!(%error, "another program put rules before our jumps in table nat, and the jumps could not be moved");
            }
        }
    }

    /// Leaves our jumps behind the rules of another program that wants to be first too. Most of its
    /// packets return from there; two programs that move their rules for ever would gain nothing.
    fn give_way(&mut self, observed: &mut Observed) {
        self.families().for_each(FamilyRules::give_way);
        (observed.intact, observed.contested) = (true, true);
        tracing::warn!(
            "another program puts its rules before our jumps in table nat again and again; ours stay \
             behind them from now on"
        );
    }

    fn families(&mut self) -> impl Iterator<Item = &mut FamilyRules> {
        iter::once(&mut self.ipv4).chain(&mut self.ipv6)
    }

    fn change_settings(&mut self, change: impl Fn(&mut Settings)) {
        self.families()
            .for_each(|rules| rules.change_settings(&change));
    }

    /// Applies the plan for one family. Returns the number of commits, if it is known.
    fn apply_family(&mut self, family: Family, plan: &Plan) -> Result<Option<u32>, DataplaneError> {
        let of_family = |mapping: &&Mapping| Family::of(mapping.pod_ip) == family;
        let remove: Vec<&Mapping> = plan.to_remove.iter().filter(of_family).collect();
        let create: Vec<&Mapping> = plan.to_create.iter().filter(of_family).collect();
        let rules = match (family, &mut self.ipv6) {
            (Family::V4, _) => &mut self.ipv4,
            (Family::V6, Ok(rules)) => rules,
            (Family::V6, Err(reason)) => {
                let Some(mapping) = create.first() else {
                    return Ok(Some(0));
                };
                let (mapping, reason) = (Box::new((*mapping).clone()), reason.clone());
                return Err(DataplaneError::NoIpv6 { mapping, reason });
            }
        };
        let commits = rules.apply(&remove, &create)?;
        self.stale_flows.record(remove, create);
        Ok(commits)
    }
}

impl Dataplane for Iptables {
    fn name(&self) -> &'static str {
        self.flavour.as_str()
    }

    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        // taken before the read: rules that change after this point must be read again
        let generation = self.current_generation();
        if let Some(observed) = self.unchanged(generation) {
            return Ok(observed);
        }
        let begun = Instant::now();
        let (ipv4, ipv6) = thread::scope(|scope| {
            let ipv6 = self.ipv6.as_mut().ok();
            let ipv6 = ipv6.map(|rules| scope.spawn(move || rules.read()));
            let ipv4 = self.ipv4.read();
            let join = |read: thread::ScopedJoinHandle<'_, _>| {
                read.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            (ipv4, ipv6.map_or(Ok(String::new()), join))
        });
        let (mut observed, only_order) = self.take(generation, begun.elapsed(), &ipv4?, &ipv6?);
        if only_order {
            self.restore_order(&mut observed);
        }
        Ok(observed)
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        let mixed = |mapping: &&Mapping| {
            mapping
                .host_ip
                .is_some_and(|ip| Family::of(ip) != Family::of(mapping.pod_ip))
        };
        if let Some(mapping) = plan.to_create.iter().find(mixed) {
            return Err(DataplaneError::MixedFamilies {
                mapping: Box::new(mapping.clone()),
            });
        }
        self.monitor.begin_change();
        // the next observation reads, even if the kernel does not tell the generation afterwards
        self.read_at = None;
        let before = self.current_generation();
        let mut commits = Some(0);
        let mut errors = Vec::new();
        for family in Family::ALL {
            match self.apply_family(family, plan) {
                Ok(more) => commits = commits.zip(more).map(|(sum, more)| sum + more),
                Err(error) => {
                    commits = None;
                    errors.push(error);
                }
            }
        }
        let after = self.current_generation();
        self.monitor.end_change(before, after, commits);
        DataplaneError::collect(errors)
    }

    fn set_neighbours(&mut self, neighbours: &[Subnet]) {
        self.change_settings(|settings| settings.neighbours = neighbours.to_vec());
    }

    fn set_masquerade(&mut self, on: bool) {
        self.change_settings(|settings| settings.masquerade = on);
    }

    fn set_host_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.change_settings(|settings| settings.host_addresses.clone_from(addresses));
        self.stale_flows.set_host_addresses(addresses);
    }

    fn set_static_ports(&mut self, ports: &BTreeSet<PortKey>) {
        self.change_settings(|settings| settings.static_ports = Some(ports.clone()));
    }

    fn has_ipv6(&self) -> bool {
        self.ipv6.is_ok()
    }

    fn changes(&self) -> ChangeMonitor {
        self.monitor.clone()
    }

    fn stale_flows(&self) -> StaleFlows {
        self.stale_flows.clone()
    }

    fn uninstall(&mut self) -> Result<(), DataplaneError> {
        self.families().for_each(FamilyRules::forget);
        DataplaneError::collect(uninstall_flavour(self.flavour, &self.tools))
    }
}

/// Returns what an earlier run left in the tables of one kind of iptables; None if they have no rule
/// of ours.
pub(crate) fn leftovers(saved: &SavedTables, settings: &Settings) -> Option<Observed> {
    let read = |family| {
        let layout = Layout::new(family, settings.clone());
        Some(Known::read(saved.own(family)?, family, &layout))
    };
    let known: Vec<Known> = Family::ALL.into_iter().filter_map(read).collect();
    let any = known.iter().any(|known| !known.untouched);
    any.then(|| Observed {
        mappings: known.iter().flat_map(Known::mappings).cloned().collect(),
        host_addresses: known
            .iter()
            .flat_map(|known| known.host_addresses.clone())
            .collect(),
        ..Observed::default()
    })
}
