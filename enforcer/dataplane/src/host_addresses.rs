//! Finds the addresses at which mappings answer: the host addresses.
//!
//! A node may have more local addresses than its own: kube-proxy, load balancers and cloud agents
//! add those of Services. Their traffic is not for the node, so it must not reach a mapped port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use nix::sys::socket::SockaddrStorage;

use super::family::{Family, octets};
use super::netlink::{Encoder, Header, NetlinkError, Options, Socket};
use super::subnet::{InvalidSubnet, Subnet, subnet};

/// `RTM_NEWROUTE` and `RTM_GETROUTE` (linux/rtnetlink.h).
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// Length of `rtmsg`, of which the encoder writes the first four bytes.
const ROUTE_BYTES: usize = 12;
/// Where `rtmsg` has the type of the route, and the type of a local address (`RTN_LOCAL`).
const ROUTE_TYPE: usize = 7;
const LOCAL_ROUTE: u8 = 2;
/// `RTA_DST`.
const DESTINATION: u16 = 1;
/// Which local addresses of the node are host addresses (`--host-addresses`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressSelection {
    /// Those that the Node object names.
    #[default]
    Node,
    /// All addresses of interfaces, except loopback, link-local and multicast addresses.
    All,
    /// Those of [`AddressSelection::All`] that are in one of the subnets.
    Within(Vec<Subnet>),
}

impl FromStr for AddressSelection {
    type Err = InvalidSelection;

    fn from_str(text: &str) -> Result<Self, InvalidSelection> {
        match text.trim() {
            "node" => return Ok(Self::Node),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let subnets = text
            .split(',')
            .map(|part| match part.trim().parse::<IpAddr>() {
                Ok(ip) => Ok(ip.into()),
                Err(_) => subnet(part),
            });
        let subnets: Result<Vec<Subnet>, InvalidSubnet> = subnets.collect();
        subnets.map(Self::Within).map_err(InvalidSelection)
    }
}

/// The error for text that selects no host addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write node, all, or subnets separated by commas")]
pub struct InvalidSelection(#[source] InvalidSubnet);

/// The host addresses of the network namespace, as of the last read.
#[derive(Debug)]
pub(super) struct HostAddresses {
    selection: AddressSelection,
    /// The addresses that the Node object names; until it is read, those that may be the node's.
    named: BTreeSet<IpAddr>,
    current: BTreeSet<IpAddr>,
}

impl HostAddresses {
    /// Starts with the addresses that the rules have now. `named`: addresses that may be the
    /// node's, until the Node object is read.
    pub(super) fn new(
        selection: AddressSelection,
        current: BTreeSet<IpAddr>,
        named: BTreeSet<IpAddr>,
    ) -> Self {
        Self {
            selection,
            named,
            current,
        }
    }

    /// Sets the addresses that the Node object names.
    pub(super) fn set_named(&mut self, named: BTreeSet<IpAddr>) {
        self.named = named;
    }

    /// Returns the host addresses as of the last read.
    pub(super) fn current(&self) -> &BTreeSet<IpAddr> {
        &self.current
    }

    /// Reads the node's addresses again. Returns the host addresses if they have changed.
    pub(super) fn refresh(&mut self) -> Option<&BTreeSet<IpAddr>> {
        match self.read_twice() {
            Ok(found) if found == self.current => None,
            Ok(found) => {
                self.current = found;
                Some(&self.current)
            }
            Err(error) => {
                tracing::warn!(%error, "the node's addresses cannot be read; trying again at the next check");
                None
            }
        }
    }

    /// A list of interfaces that changes while it is read may lack an address: one that lacks any is read
    /// again, so that no mapping is lost for a moment.
    fn read_twice(&self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        let found = self.read()?;
        if found.is_superset(&self.current) {
            return Ok(found);
        }
        Ok(&found | &self.read()?)
    }

    fn read(&self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        match &self.selection {
            AddressSelection::Node => local(&self.named),
            AddressSelection::All => of_interfaces(|_| true),
            AddressSelection::Within(subnets) => {
                of_interfaces(|ip| subnets.iter().any(|subnet| subnet.contains(ip)))
            }
        }
    }
}

/// Returns those of the addresses that are local.
fn local(named: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let mut socket = Socket::open(Options {
        protocol: None,
        ..Options::default()
    })?;
    let mut found = BTreeSet::new();
    for ip in named.iter().copied() {
        if !ip.is_loopback() && is_local(&mut socket, ip)? {
            found.insert(ip);
        }
    }
    Ok(found)
}

/// Returns whether packets to the address are for this node, by its routes. A cloud agent may make
/// an address local by a route alone, without an interface that has it.
fn is_local(socket: &mut Socket, ip: IpAddr) -> Result<bool, NetlinkError> {
    let request = Header {
        kind: GET_ROUTE,
        family: Family::of(ip).number(),
        ..Header::default()
    };
    let destination = |encoder: &mut Encoder| {
        encoder.raw(&[0; ROUTE_BYTES - 4]);
        encoder.bytes(DESTINATION, &octets(ip));
    };
    let mut local = false;
    let asked = socket.request(request, destination, |route| {
        local |= route.kind == NEW_ROUTE && route.payload.get(ROUTE_TYPE) == Some(&LOCAL_ROUTE);
    });
    match asked {
        Ok(()) => Ok(local),
        // no route leads there
        Err(NetlinkError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the addresses of interfaces at which other machines can reach this one, if they are wanted.
fn of_interfaces(wanted: impl Fn(&IpAddr) -> bool) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let all = interface_addresses().map_err(|errno| NetlinkError::Receive(errno.into()))?;
    let found = all.into_iter().filter(|ip| is_reachable(*ip) && wanted(ip));
    Ok(found.collect())
}

/// Returns the addresses of the node's interfaces.
pub fn interface_addresses() -> nix::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let address = |storage: SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let addresses = interfaces.filter_map(|interface| address(interface.address?));
    Ok(addresses.collect())
}

fn is_reachable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

#[cfg(test)]
mod tests;
