//! Finds the addresses at which mappings answer: the host addresses.
//!
//! A node may have more local addresses than its own: kube-proxy, load balancers and cloud agents
//! add those of Services. Their traffic is not for the node, so it must not reach a mapped port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use super::family::{Family, octets};
use super::netlink::{Attributes, Encoder, Header, Message, NetlinkError, Options, Socket};
use super::settings::{InvalidSubnet, Subnet, subnet};

/// `RTM_NEWADDR` and `RTM_GETADDR` (linux/rtnetlink.h).
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
/// `RTM_NEWROUTE` and `RTM_GETROUTE`.
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// Length of `ifaddrmsg`, of which the encoder writes the first four bytes.
const ADDRESS_BYTES: usize = 8;
/// Length of `rtmsg`, of which the encoder writes the first four bytes.
const ROUTE_BYTES: usize = 12;
/// Where `rtmsg` has the type of the route, and the type of a local address (`RTN_LOCAL`).
const ROUTE_TYPE: usize = 7;
const LOCAL_ROUTE: u8 = 2;
/// `RTA_DST`.
const DESTINATION: u16 = 1;
/// `IFA_ADDRESS` and `IFA_LOCAL` (`linux/if_addr.h`); they differ on point-to-point interfaces.
const ADDRESS: u16 = 1;
const OWN_ADDRESS: u16 = 2;

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
    socket: Option<Socket>,
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
            socket: None,
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
        match self.read() {
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

    fn read(&mut self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(Socket::open(Options {
                protocol: None,
                ..Options::default()
            })?),
        };
        let all = match &self.selection {
            AddressSelection::Node => {
                let mut found = BTreeSet::new();
                for ip in self.named.iter().copied() {
                    if !ip.is_loopback() && is_local(socket, ip)? {
                        found.insert(ip);
                    }
                }
                return Ok(found);
            }
            AddressSelection::All => return of_interfaces(socket),
            AddressSelection::Within(subnets) => subnets,
        };
        let mut found = of_interfaces(socket)?;
        found.retain(|ip| all.iter().any(|subnet| subnet.contains(ip)));
        Ok(found)
    }
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

/// Returns the addresses of interfaces at which other machines can reach this one.
fn of_interfaces(socket: &mut Socket) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let request = Header {
        kind: GET_ADDRESS,
        ..Header::default()
    };
    let mut found = BTreeSet::new();
    socket.dump(
        request,
        |encoder| encoder.raw(&[0; ADDRESS_BYTES - 4]),
        |message| found.extend(address(message).filter(|ip| is_reachable(*ip))),
    )?;
    Ok(found)
}

fn address(message: &Message<'_>) -> Option<IpAddr> {
    let attributes = Attributes::new(message.payload.get(ADDRESS_BYTES..)?);
    if message.kind != NEW_ADDRESS {
        return None;
    }
    let own = attributes.clone().find(OWN_ADDRESS);
    let value = own.or_else(|| attributes.clone().find(ADDRESS))?.value;
    let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?));
    let v6 = || Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?));
    v4().or_else(v6)
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
