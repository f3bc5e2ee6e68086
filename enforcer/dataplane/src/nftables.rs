//! The nftables driver: one table with maps, over netlink, without external programs.
//!
//! Adding or deleting mappings is one transaction. Its size does not depend on the number of other
//! mappings. A port is found by one hash lookup. The table is ours alone. An element in it is ours
//! if its comment names a pod; other elements are neither changed nor counted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use portmapping_shared::Plan;
use portmapping_shared::contract::CHAIN_PREFIX;
use rustix::io::Errno;

use super::change_monitor::ChangeMonitor;
use super::conntrack::StaleFlows;
use super::family::Family;
use super::netlink::{Batch, Encoder, Header, Message, NetlinkError, Options, Socket, flags};
use super::settings::Settings;
use super::subnet::Subnet;
use super::{Dataplane, DataplaneError, Observed};

mod change;
mod element;
mod expression;
mod forward_chains;
mod frame;
mod read;
mod sets;
mod table;

use change::Change;
use element::{Listed, Slot};
pub(super) use forward_chains::forward_chains;
use frame::{Abilities, Frame, OURS, REHEARSED, TABLE, header, message};
use table::{Content, FrameState};

/// How often a change is tried while the known state of the tables is out of date.
const ATTEMPTS: usize = 4;

/// Mappings as elements of nftables maps.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
    settings: Settings,
    frame: Frame,
    abilities: Abilities,
    known: Content,
    /// Whether the table must be read again before it is changed.
    stale: bool,
    stale_flows: StaleFlows,
    monitor: ChangeMonitor,
}

impl Nftables {
    /// Opens the driver. The kernel checks the table without making it. Without IPv6 translation
    /// the driver maps IPv4 only, and logs this once.
    pub fn open(settings: &Settings) -> Result<Self, DataplaneError> {
        Self::open_with(settings, Options::default())
    }

    /// Opens the driver like [`Self::open`], with other options of the socket.
    pub fn open_with(settings: &Settings, options: Options) -> Result<Self, DataplaneError> {
        let unusable = |source| DataplaneError::NoNftables { source };
        let mut socket = Socket::open(options).map_err(unusable)?;
        let mut reason = None;
        let tries = [(true, true), (true, false), (false, true), (false, false)];
        for (ipv6, sockets) in tries {
            let abilities = Abilities { ipv6, sockets };
            let frame = Frame::new(settings, abilities);
            let mut batch = Batch::new(None);
            frame.make(&mut batch, REHEARSED, false, 1);
            match socket.rehearse(&mut batch) {
                Ok(()) => {
                    abilities.log(reason.as_ref());
                    return Ok(Self {
                        socket,
                        settings: settings.clone(),
                        frame,
                        abilities,
                        known: Content::default(),
                        stale: true,
                        stale_flows: StaleFlows::new(&settings.host_addresses),
                        monitor: ChangeMonitor::default(),
                    });
                }
                Err(error @ NetlinkError::Refused(_)) => reason = reason.or(Some(error)),
                Err(error) => return Err(unusable(error)),
            }
        }
        Err(unusable(reason.unwrap_or(NetlinkError::Malformed)))
    }

    fn read(&mut self) -> Result<(), NetlinkError> {
        self.stale = true;
        let begun = Instant::now();
        let found = read::read_table(&mut self.socket, &self.frame, &self.known)?;
        let altered = !found.is_intact() || found.lacks_any_of(&self.known);
        let generation = Some(found.generation);
        self.monitor
            .record_read(generation, begun.elapsed(), altered);
        self.known = found;
        self.stale = false;
        Ok(())
    }

    /// Applies the plan in one transaction. If the kernel refuses a change of a state that was not
    /// just read, that state may be out of date: the table is read and the change is tried again.
    fn change(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        let mut attempt = 1;
        loop {
            let fresh = self.stale;
            if self.stale {
                self.read()?;
            }
            // the last try is not bound to a generation: on some nodes tables change all the time
            let mut change = Change::new(&self.known, &self.frame, plan, attempt < ATTEMPTS)?;
            // opens the socket again if it lost an answer, which changes its port
            self.socket.renew()?;
            self.monitor.own_port(self.socket.port());
            let error = match self.socket.commit(&mut change.batch) {
                Ok(()) => {
                    change.accept(&mut self.known);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.stale = true;
            let out_of_date = match &error {
                NetlinkError::StaleGeneration => true,
                NetlinkError::Refused(_) => !fresh,
                // the next read shows whether the change was made
                error => error.is_uncertain(),
            };
            if !out_of_date || attempt == ATTEMPTS {
                return Err(explain(error, &change.batch, plan));
            }
            tracing::debug!(%error, attempt, "a change of the table is tried again");
            attempt += 1;
        }
    }

    fn change_settings(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.frame = Frame::new(&self.settings, self.abilities);
        self.stale = true;
    }

    fn check(&self, plan: &Plan) -> Result<(), DataplaneError> {
        for mapping in &plan.to_create {
            let family = Family::of(mapping.pod_ip);
            let mapping = || Box::new(mapping.clone());
            if mapping().host_ip.is_some_and(|ip| Family::of(ip) != family) {
                return Err(DataplaneError::MixedFamilies { mapping: mapping() });
            }
            if family == Family::V6 && !self.abilities.ipv6 {
                return Err(DataplaneError::NoIpv6 {
                    mapping: mapping(),
                    reason: "the kernel's nf_tables cannot translate IPv6 addresses".to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl Abilities {
    fn log(self, reason: Option<&NetlinkError>) {
        let Some(error) = reason else {
            return;
        };
        if !self.ipv6 {
            tracing::warn!(%error, "IPv6 rules cannot be made on this node: IPv4 only");
        }
        if !self.sockets {
            tracing::warn!(
                %error,
                "nftables cannot look for sockets here (CONFIG_NFT_SOCKET): datagrams to any port \
                 of the range without a mapping are refused; exclude the ports of other services"
            );
        }
    }
}

/// Returns an error that names the mapping which the kernel refused, if it refused one.
fn explain(error: NetlinkError, batch: &Batch, plan: &Plan) -> DataplaneError {
    let refused = error.refusals().iter().find_map(|refusal| {
        let element = batch.attribute(refusal).filter(|element| element.nested)?;
        let key = Listed::read(element).key;
        let mapping = plan.to_create.iter().find(|mapping| {
            let slot = Slot::of(mapping);
            Slot::read(slot.set(), key) == Some(slot)
        });
        mapping.cloned().map(Box::new)
    });
    match refused {
        Some(mapping) => DataplaneError::ElementRefused {
            mapping,
            source: error,
        },
        None => DataplaneError::Netlink(error),
    }
}

impl Dataplane for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.read()?;
        Ok(Observed {
            mappings: self.known.mappings.values().cloned().collect(),
            intact: self.known.is_intact(),
            host_addresses: self.known.host_addresses.clone(),
            ..Observed::default()
        })
    }

    /// One transaction for both families: all of the plan, or none of it.
    fn apply(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        self.check(plan)?;
        self.change(plan)?;
        self.stale_flows.record(&plan.to_remove, &plan.to_create);
        Ok(())
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

    fn has_ipv6(&self) -> bool {
        self.abilities.ipv6
    }

    fn changes(&self) -> ChangeMonitor {
        self.monitor.clone()
    }

    fn stale_flows(&self) -> StaleFlows {
        self.stale_flows.clone()
    }

    fn uninstall(&mut self) -> Result<(), DataplaneError> {
        self.stale = true;
        self.known = Content::default();
        remove_table(&mut self.socket)
    }
}

/// Returns what a table of ours has; None without a table, or without `nf_tables`.
pub(super) fn leftovers(settings: &Settings) -> Option<Observed> {
    let mut driver = Nftables::open(settings).ok()?;
    match driver.observe() {
        Ok(_) if driver.known.frame == FrameState::Missing => None,
        Ok(observed) => Some(observed),
        Err(error) => {
            tracing::warn!(%error, "our nftables table of an earlier run cannot be read; it is removed");
            Some(Observed::default())
        }
    }
}

/// Removes our table, if there is one. Without `nf_tables` there is none.
pub fn uninstall() -> Result<(), DataplaneError> {
    match Socket::open(Options::default()) {
        Ok(mut socket) => remove_table(&mut socket),
        Err(error) => {
            tracing::debug!(%error, "no netlink, and so no table of ours");
            Ok(())
        }
    }
}

/// Returns whether the kernel may have iptables chains of ours, without running iptables. The
/// chains of iptables-nft can be listed; of iptables-legacy only the names of its tables can be
/// read.
pub(super) fn may_have_iptables_chains() -> bool {
    let legacy = ["ip_tables_names", "ip6_tables_names"]
        .into_iter()
        .any(|list| {
            let tables = std::fs::read_to_string(format!("/proc/thread-self/net/{list}"));
            tables.is_ok_and(|tables| tables.lines().any(|table| table == "nat"))
        });
    let mut tables = ["nat", "mangle"].into_iter();
    legacy
        || tables.any(|table| {
            let mut families = Family::ALL.into_iter();
            families.any(|family| !iptables_chains(family, table).is_empty())
        })
}

/// Returns the chains of ours in a table of iptables-nft.
pub(super) fn iptables_chains(family: Family, table: &str) -> Vec<String> {
    let mut found = Vec::new();
    let listed = Socket::open(Options::default()).and_then(|mut socket| {
        let read = |chain: &Message<'_>| {
            let text = |kind| {
                let attribute = chain.attributes().find(kind);
                attribute.and_then(|text| text.text().map(str::to_owned))
            };
            let name = text(3).filter(|name| name.starts_with(CHAIN_PREFIX));
            found.extend(name.filter(|_| text(TABLE).as_deref() == Some(table)));
        };
        socket.dump(of_iptables(message::GETCHAIN, family), |_| {}, read)
    });
    if let Err(error) = listed {
        tracing::debug!(%error, "chains could not be listed");
    }
    found
}

/// Returns whether the policy of FORWARD of iptables-nft drops; None if the kernel does not say it.
pub(super) fn forward_drops(family: Family) -> Option<bool> {
    const DROP: u32 = 0;
    let mut policy = None;
    let mut socket = Socket::open(Options::default()).ok()?;
    let which = |encoder: &mut Encoder| {
        encoder.text(TABLE, "filter");
        encoder.text(3, "FORWARD");
    };
    let read = socket.request(of_iptables(message::GETCHAIN, family), which, |chain| {
        let attribute = chain.attributes().find(5);
        policy = attribute.and_then(|policy| policy.be32());
    });
    match read {
        Ok(()) => policy.map(|policy| policy == DROP),
        // a chain that does not exist drops nothing
        Err(error) if error.is_refusal(Errno::NOENT) => Some(false),
        Err(_) => None,
    }
}

/// Returns whether table filter of iptables-nft has sets, which only nft makes; None if the kernel does not say
/// it. iptables-nft-save prints a rule with a set as if it had no such condition.
pub(super) fn filter_has_sets(family: Family) -> Option<bool> {
    let mut found = false;
    let mut socket = Socket::open(Options::default()).ok()?;
    let read = socket.dump(
        of_iptables(message::GETSET, family),
        |_| {},
        |set| {
            let table = set.attributes().find(TABLE);
            found |= table.and_then(|table| table.text()) == Some("filter");
        },
    );
    read.ok()?;
    Some(found)
}

/// Returns the header of a request for what iptables-nft has.
fn of_iptables(kind: u16, family: Family) -> Header {
    Header {
        family: family.number(),
        ..header(kind, 0)
    }
}

/// Returns whether the kernel has `nf_tables`; true if the kernel's answer does not show it.
pub(super) fn is_in_kernel() -> bool {
    let asked = Socket::open(Options::default())
        .and_then(|mut socket| socket.request(header(message::GETGEN, 0), |_| {}, |_| {}));
    match asked {
        Err(NetlinkError::Open(_)) => false,
        Err(error) => !is_missing(&error),
        Ok(()) => true,
    }
}

/// Returns whether the error means that the kernel lacks this part of netfilter.
fn is_missing(error: &NetlinkError) -> bool {
    error.is_refusal(Errno::OPNOTSUPP) || error.is_refusal(Errno::INVAL)
}

fn remove_table(socket: &mut Socket) -> Result<(), DataplaneError> {
    let mut batch = Batch::new(None);
    // the table is made first, so that removing a missing one is no error
    for (kind, flags) in [(message::NEWTABLE, flags::CREATE), (message::DELTABLE, 0)] {
        batch.message(header(kind, flags), |encoder| encoder.text(TABLE, OURS));
    }
    match socket.commit(&mut batch) {
        Err(error) if is_missing(&error) => {
            tracing::debug!(%error, "no nf_tables in this kernel, and so no table of ours");
            Ok(())
        }
        removed => removed.map_err(DataplaneError::Netlink),
    }
}
