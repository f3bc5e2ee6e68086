//! The iptables driver: a tree of port ranges in table nat, for IPv4 and IPv6.
//!
//! `observe` reads `iptables-save`; `apply` is one `iptables-restore --noflush` per family, which
//! rewrites just the leaf chains that change. Chains and rules of others are never named in it.

use std::thread;
use std::time::{Duration, Instant};

use portmapping_shared::{Mapping, Plan};

use super::conntrack::Conntrack;
use super::exec::Tools;
use super::forward::Forward;
use super::generation::{Drift, GenerationSocket};
use super::{Dataplane, DataplaneError, Look, Observed, Preparations};

pub(crate) mod commands;
pub(crate) mod family;
mod jumps;
mod layout;
pub(crate) mod noted;
mod notes;
mod probe;
mod reading;
mod rule;
pub(crate) mod save;
mod settings;
mod side;
#[cfg(test)]
mod testing;
mod transaction;
mod tree;
mod uninstall;

use commands::Commands;
pub use family::{Family, Flavour};
use layout::Layout;
pub use settings::{InvalidSubnet, Settings, Subnet};
use side::Side;
pub use uninstall::uninstall;
pub(crate) use uninstall::{has_traces, uninstall_flavour};

/// Mappings as iptables rules.
#[derive(Debug)]
pub struct Iptables {
    flavour: Flavour,
    tools: Tools,
    ipv4: Side,
    /// Err says why there is none.
    ipv6: Result<Side, String>,
    conntrack: Conntrack,
    forward: Forward,
    drift: Drift,
    generation: GenerationSocket,
    /// Changes begun so far: what was read before or beside one of them is outdated.
    changes: u64,
}

/// Table nat of both families, to be read and then as it was printed.
#[derive(Debug)]
pub struct Tables {
    /// Changes begun when this was begun.
    changes: u64,
    generation: Option<u32>,
    took: Duration,
    families: Vec<(Commands, Result<String, DataplaneError>)>,
}

impl Tables {
    /// Runs the programs, all at once.
    pub(super) fn read(&mut self) {
        let begun = Instant::now();
        thread::scope(|scope| {
            for (commands, text) in &mut self.families {
                scope.spawn(|| *text = commands.save_nat());
            }
        });
        self.took = begun.elapsed();
    }
}

impl Iptables {
    /// Checks that the programs work here, and changes nothing. Without ip6tables the driver
    /// carries IPv4 alone, which is logged once.
    pub fn open(
        flavour: Flavour,
        settings: Settings,
        tools: Tools,
    ) -> Result<Self, DataplaneError> {
        let forward = Forward::new(settings.range, &settings.excluded, &tools);
        let side = |family, settings| {
            let commands = Commands::new(family, flavour, tools.clone());
            let mut side = Side::new(commands, Layout::new(family, settings));
            let text = side.commands().save_nat()?;
            side.open();
            side.take(&text);
            Ok::<_, DataplaneError>(side)
        };
        let ipv4 = side(Family::V4, settings.clone())?;
        let ipv6 = side(Family::V6, settings).map_err(|error| {
            tracing::warn!(%error, "IPv6 rules cannot be made on this node: IPv4 only");
            error.to_string()
        });
        let conntrack = Conntrack::new();
        Ok(Self {
            flavour,
            tools,
            ipv4,
            ipv6,
            conntrack,
            forward,
            drift: Drift::default(),
            generation: GenerationSocket::default(),
            changes: 0,
        })
    }

    /// Which iptables this is.
    #[must_use]
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    fn is_in_use(&self) -> bool {
        self.ipv4.is_in_use() || self.ipv6.as_ref().is_ok_and(Side::is_in_use)
    }

    /// iptables-legacy has no generations.
    fn current_generation(&mut self) -> Option<u32> {
        let nft = self.flavour == Flavour::Nft;
        nft.then(|| self.generation.current()).flatten()
    }

    /// Takes in what was read.
    fn take(&mut self, look: Look) -> Result<Observed, DataplaneError> {
        let mut observed = Observed {
            intact: true,
            ..Observed::default()
        };
        let mut altered = false;
        let (mut generation, mut took) = (None, Duration::ZERO);
        if let Some(tables) = look.tables {
            (generation, took) = (tables.generation, tables.took);
            for (commands, text) in tables.families {
                let side = match (commands.family, &mut self.ipv6) {
                    (Family::V6, Ok(side)) => side,
                    _ => &mut self.ipv4,
                };
                let text = text.inspect_err(|_| side.forget())?;
                let (found, other) = side.take(&text);
                observed.mappings.extend(found.mappings);
                observed.intact &= found.intact;
                altered |= other;
            }
        }
        if let Some(filters) = look.filters {
            let in_use = self.is_in_use();
            observed.intact &= self.forward.observe(filters, in_use);
        }
        self.drift.looked(generation, took, altered);
        Ok(observed)
    }

    /// How many commits it took, where that is known.
    fn apply_family(&mut self, family: Family, plan: &Plan) -> Result<Option<u32>, DataplaneError> {
        let of_family = |mapping: &&Mapping| Family::of(mapping.pod_ip) == family;
        let remove: Vec<&Mapping> = plan.to_remove.iter().filter(of_family).collect();
        let create: Vec<&Mapping> = plan.to_create.iter().filter(of_family).collect();
        let side = match (family, &mut self.ipv6) {
            (Family::V4, _) => &mut self.ipv4,
            (Family::V6, Ok(side)) => side,
            (Family::V6, Err(reason)) => {
                let Some(mapping) = create.first() else {
                    return Ok(Some(0));
                };
                let (mapping, reason) = (Box::new((*mapping).clone()), reason.clone());
                return Err(DataplaneError::NoIpv6 { mapping, reason });
            }
        };
        let commits = side.apply(&remove, &create)?;
        self.conntrack.clear(family, &remove, &create);
        Ok(commits)
    }
}

impl Dataplane for Iptables {
    fn name(&self) -> &'static str {
        self.flavour.as_str()
    }

    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        let mut look = self.look();
        look.read();
        self.take(look)
    }

    fn look(&mut self) -> Look {
        // before anything is read: what changes from now on is to be looked at again
        let generation = self.current_generation();
        let sides = [Some(&self.ipv4), self.ipv6.as_ref().ok()];
        let unread = |side: &Side| (side.commands().clone(), Ok(String::new()));
        Look {
            tables: Some(Tables {
                changes: self.changes,
                generation,
                took: Duration::ZERO,
                families: sides.into_iter().flatten().map(unread).collect(),
            }),
            filters: Some(self.forward.filters()),
        }
    }

    fn looked(&mut self, look: Look) -> Result<Option<Observed>, DataplaneError> {
        let current = look
            .tables
            .as_ref()
            .is_some_and(|tables| tables.changes == self.changes);
        current.then(|| self.take(look)).transpose()
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
        self.changes += 1;
        self.drift.begin_change();
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
        let more = self.forward.apply(self.is_in_use());
        commits = commits.map(|sum| sum + more);
        let after = self.current_generation();
        self.drift.end_change(before, after, commits);
        DataplaneError::collect(errors)
    }

    fn set_neighbours(&mut self, neighbours: &[Subnet]) {
        self.ipv4.set_neighbours(neighbours);
        if let Ok(ipv6) = &mut self.ipv6 {
            ipv6.set_neighbours(neighbours);
        }
    }

    fn preparations(&self) -> Preparations {
        let sides = [Some(&self.ipv4), self.ipv6.as_ref().ok()];
        Preparations(sides.into_iter().flatten().map(Side::preparation).collect())
    }

    fn has_ipv6(&self) -> bool {
        self.ipv6.is_ok()
    }

    fn drift(&self) -> Drift {
        self.drift.clone()
    }

    fn clear_failures(&self) -> u64 {
        self.conntrack.failures()
    }

    fn uninstall(&mut self) -> Result<(), DataplaneError> {
        self.ipv4.forget();
        if let Ok(ipv6) = &mut self.ipv6 {
            ipv6.forget();
        }
        uninstall(&self.tools)
    }
}
