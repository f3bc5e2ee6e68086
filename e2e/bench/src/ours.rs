//! Our drivers, on a node of the benchmark.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use portmapping_dataplane::change_monitor::ChangeMonitor;
use portmapping_dataplane::iptables::{Iptables, SavedTables};
use portmapping_dataplane::nftables::Nftables;
use portmapping_dataplane::{Dataplane, Flavour, Settings, Tools};
use portmapping_shared::{Mapping, Plan, PortRange};

use super::lab::{FIRST_PORT, LAST_PORT};
use super::netns::Netns;
use super::peers::{self, portmap};
use super::report::Bar;

/// The drivers that a node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

/// The bars that the drivers must reach, as ratios or in ms.
pub(super) struct Bars {
    /// A new connection, compared with routing and conntrack.
    pub(super) connect: Bar,
    pub(super) add: Bar,
    pub(super) delete: Bar,
    pub(super) burst: Bar,
    pub(super) read_back: Bar,
    pub(super) restore: Bar,
}

impl Backend {
    pub(super) const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// Returns the value of `--backend`; the kind of iptables is then detected.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft | Self::IptablesLegacy => "iptables",
        }
    }

    /// Returns the number of mappings with which it is measured: that for nftables or for iptables.
    pub(super) fn most(self, nftables: u16, iptables: u16) -> u16 {
        match self {
            Self::Nftables => nftables,
            Self::IptablesNft | Self::IptablesLegacy => iptables,
        }
    }

    pub(super) fn bars(self) -> Bars {
        let iptables = |read_back| Bars {
            connect: Bar::AtMostRatio(1.20),
            // compared with bare rules
            add: Bar::AtMostRatio(1.5),
            delete: Bar::AtMostRatio(1.5),
            burst: Bar::AtMost(300.0),
            read_back: Bar::AtMost(read_back),
            restore: Bar::None,
        };
        match self {
            Self::Nftables => Bars {
                connect: Bar::AtMostRatio(1.15),
                add: Bar::AtMost(0.1),
                delete: Bar::AtMost(0.1),
                burst: Bar::AtMost(60.0),
                read_back: Bar::AtMost(30.0),
                restore: Bar::AtMost(130.0),
            },
            Self::IptablesNft => iptables(60.0),
            Self::IptablesLegacy => iptables(120.0),
        }
    }

    /// Returns the kind of iptables; None for nftables.
    pub(super) fn flavour(self) -> Option<Flavour> {
        match self {
            Self::Nftables => None,
            Self::IptablesNft => Some(Flavour::Nft),
            Self::IptablesLegacy => Some(Flavour::Legacy),
        }
    }

    /// Returns the plugins that use the same packet filter of the kernel.
    pub(super) fn rivals(self) -> &'static [portmap::Kind] {
        match self {
            Self::Nftables => &[portmap::Kind::NewestNftables],
            Self::IptablesNft => &[
                portmap::Kind::Debian(peers::Iptables::Nft),
                portmap::Kind::NewestIptables,
            ],
            Self::IptablesLegacy => &[portmap::Kind::Debian(peers::Iptables::Legacy)],
        }
    }

    /// Returns a script that removes every rule on a node, also foreign rules.
    pub(super) fn flush(self) -> &'static str {
        match self {
            Self::Nftables | Self::IptablesNft => "nft flush ruleset",
            Self::IptablesLegacy => {
                "iptables-legacy -t nat -F; iptables-legacy -t nat -X
                 iptables-legacy -t filter -F; iptables-legacy -t filter -X"
            }
        }
    }

    pub(super) fn open(self, node: &Netns) -> Result<Ours> {
        let range: PortRange = format!("{FIRST_PORT}-{LAST_PORT}")
            .parse()
            .context("the range of host ports")?;
        let settings = Settings {
            host_addresses: addresses(node)?,
            ..Settings::new(range)
        };
        let driver = node.run(|| {
            let driver: Box<dyn Dataplane> = match self.flavour() {
                None => Box::new(Nftables::open(&settings).context("open the nftables driver")?),
                Some(flavour) => {
                    let tools = Tools::default();
                    let saved = SavedTables::read(flavour, &tools);
                    let (driver, _) = Iptables::open(settings, tools, saved)
                        .context("open the iptables driver")?;
                    Box::new(driver)
                }
            };
            anyhow::Ok(driver)
        })?;
        Ok(Ours(driver))
    }
}

/// Returns the addresses of a node's interfaces.
fn addresses(node: &Netns) -> Result<BTreeSet<IpAddr>> {
    let listed = node.sh("ip -o address show scope global")?;
    let words = listed.split_whitespace();
    let addresses = words.filter_map(|word| word.split_once('/')?.0.parse().ok());
    Ok(addresses.collect())
}

/// A driver. Times are in ms, and are those of the driver alone.
pub(super) struct Ours(Box<dyn Dataplane>);

impl Ours {
    pub(super) fn create(&mut self, node: &Netns, mappings: &[Mapping]) -> Result<f64> {
        let to_create = mappings.to_vec();
        self.apply(
            node,
            &Plan {
                to_create,
                ..Plan::default()
            },
        )
    }

    pub(super) fn remove(&mut self, node: &Netns, mappings: &[Mapping]) -> Result<f64> {
        let to_remove = mappings.to_vec();
        self.apply(
            node,
            &Plan {
                to_remove,
                ..Plan::default()
            },
        )
    }

    pub(super) fn changes(&self) -> ChangeMonitor {
        self.0.changes()
    }

    fn apply(&mut self, node: &Netns, plan: &Plan) -> Result<f64> {
        node.run(|| {
            let start = Instant::now();
            self.0.apply(plan).context("change mappings")?;
            let time = ms(start);
            let _ = self.0.stale_flows().clear();
            Ok(time)
        })
    }

    /// Reads everything back and compares it.
    pub(super) fn verify(&mut self, node: &Netns, desired: &BTreeSet<Mapping>) -> Result<f64> {
        node.run(|| {
            let start = Instant::now();
            let observed = self.0.observe().context("read mappings back")?;
            let same = observed.intact && observed.mappings == *desired;
            let time = ms(start);
            if !same {
                bail!(
                    "{}: {} mappings in the kernel (frame whole: {}), not the {} wanted",
                    self.0.name(),
                    observed.mappings.len(),
                    observed.intact,
                    desired.len()
                );
            }
            Ok(time)
        })
    }

    /// Does what the enforcer does after another program changed the rules: read, compare, repair.
    pub(super) fn restore(&mut self, node: &Netns, desired: &BTreeSet<Mapping>) -> Result<f64> {
        node.run(|| {
            let start = Instant::now();
            let observed = self.0.observe().context("read mappings back")?;
            let plan = Plan::new(desired, &observed.mappings);
            self.0.apply(&plan).context("repair mappings")?;
            Ok(ms(start))
        })
    }
}

/// Returns the milliseconds since `start`.
pub(super) fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
