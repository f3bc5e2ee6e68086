//! Parses a CNI result file. Pure: bytes in, values out.
//!
//! The format is libcni's `cachedInfo` (containernetworking/cni, libcni/api.go): JSON of kind
//! `cniCacheV1`, around a result of any version of the CNI specification. Only the runtime writes
//! there, but every field is checked, because an address in it becomes a rule.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use portmapping_enforcer_core::{Sandbox, SandboxId};
use portmapping_shared::PodUid;
use serde::Deserialize;

/// Largest file that is parsed, bytes; real ones have 1 to 4 KiB.
pub const MAX_SIZE: usize = 1 << 20;
/// libcni's name of its format.
const KIND: &str = "cniCacheV1";
/// The interface whose addresses the kubelet reports as the pod's: containerd and CRI-O always use
/// this name. `lo` and further networks (Multus: net1, net2, ...) have files of their own.
const POD_INTERFACE: &str = "eth0";
/// Most addresses of one interface; two are usual, one of each family.
const MAX_ADDRESSES: usize = 16;

/// Why a file of the cache cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// More than [`MAX_SIZE`] bytes.
    #[error("it is larger than {MAX_SIZE} bytes")]
    TooLarge,
    /// Empty, incomplete, or not JSON of this format.
    #[error("it is not a CNI result: {0}")]
    Malformed(String),
    /// Some other format, such as the bare results of libcni before 0.8.
    #[error("its kind is {0:?}, not {KIND}")]
    OtherKind(String),
    /// The runtime does not say which pod it is for.
    #[error("its cniArgs have no usable K8S_POD_UID")]
    NoPod,
    /// Not a valid container id.
    #[error("{0:?} is not a container id")]
    NoSandbox(String),
    /// Not an address.
    #[error("{0:?} is not an address with a prefix length")]
    NotAnAddress(String),
    /// An address of an interface that the result does not list.
    #[error("an address belongs to interface {0}, which is not listed")]
    NoSuchInterface(i64),
    /// No address that a pod can have.
    #[error("none of its addresses can be a pod's")]
    NoAddress,
}

/// Parses a result. Returns None for a valid result of another interface than the pod's.
///
/// `written` is the file's modification time, since the Unix epoch. `of_node` returns whether an
/// address is one of the node's own: a rule towards it would open the node itself.
pub fn parse(
    bytes: &[u8],
    written: Duration,
    of_node: impl Fn(IpAddr) -> bool,
) -> Result<Option<Sandbox>, Unusable> {
    if bytes.len() > MAX_SIZE {
        return Err(Unusable::TooLarge);
    }
    let cached: CachedInfo =
        // serde's message quotes the unexpected text, however long it is
        serde_json::from_slice(bytes)
            .map_err(|error| Unusable::Malformed(shortened(&error.to_string())))?;
    if cached.kind != KIND {
        return Err(Unusable::OtherKind(shortened(&cached.kind)));
    }
    if cached.if_name != POD_INTERFACE {
        return Ok(None);
    }
    let uid = pod_uid(&cached.cni_args.unwrap_or_default())?;
    let id: SandboxId = cached
        .container_id
        .parse()
        .map_err(|_| Unusable::NoSandbox(shortened(&cached.container_id)))?;
    let mut ips = Vec::new();
    let result = cached.result.unwrap_or_default();
    for text in result.addresses()? {
        let ip = address(text).ok_or_else(|| Unusable::NotAnAddress(shortened(text)))?;
        if fits_a_pod(ip) && !of_node(ip) && !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    if ips.is_empty() {
        return Err(Unusable::NoAddress);
    }
    // containerd's order, and the kubelet's on a node whose first address is IPv4
    ips.sort_by_key(IpAddr::is_ipv6);
    Ok(Some(Sandbox {
        uid,
        id,
        ips,
        written,
    }))
}

/// Returns the pod's uid; two different ones are an error.
fn pod_uid(args: &[(String, String)]) -> Result<PodUid, Unusable> {
    let mut uids = args
        .iter()
        .filter(|(key, _)| key == "K8S_POD_UID")
        .map(|(_, uid)| uid);
    let first = uids.next().ok_or(Unusable::NoPod)?;
    if uids.any(|other| other != first) {
        return Err(Unusable::NoPod);
    }
    first.parse().map_err(|_| Unusable::NoPod)
}

/// Parses an address in CIDR notation, as in every version of the specification.
fn address(text: &str) -> Option<IpAddr> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    (prefix <= longest).then(|| ip.to_canonical())
}

/// Returns whether a pod can have this address: unicast, and neither loopback nor link-local.
fn fits_a_pod(ip: IpAddr) -> bool {
    let nowhere = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    let bound_to_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip == Ipv4Addr::BROADCAST || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !nowhere && !bound_to_link
}

/// Returns the first characters of a text, for a log line.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// libcni's `cachedInfo`, without the network's configuration and other fields. Go may write null
/// for an empty array or object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CachedInfo {
    kind: String,
    container_id: String,
    if_name: String,
    cni_args: Option<Vec<(String, String)>>,
    result: Option<CniResult>,
}

/// A result of any version: `ips` since 0.3.0, `ip4` and `ip6` before.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniResult {
    ips: Option<Vec<IpConfig>>,
    interfaces: Option<Vec<Interface>>,
    ip4: Option<OldIpConfig>,
    ip6: Option<OldIpConfig>,
}

#[derive(Debug, Deserialize)]
struct IpConfig {
    address: String,
    /// Index into `interfaces`.
    interface: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
struct OldIpConfig {
    ip: String,
}

impl CniResult {
    /// Returns the addresses of the pod's interface: those that name it, and those that name none,
    /// because plugins with a single interface leave the name out. Runtimes read results this way.
    fn addresses(&self) -> Result<Vec<&str>, Unusable> {
        let mut found = Vec::new();
        for config in self.ips.iter().flatten() {
            let named = match config.interface {
                None => POD_INTERFACE,
                Some(index) => self.interface(index)?,
            };
            if named == POD_INTERFACE {
                found.push(config.address.as_str());
            }
        }
        found.extend(
            [&self.ip4, &self.ip6]
                .into_iter()
                .flatten()
                .map(|c| c.ip.as_str()),
        );
        if found.len() > MAX_ADDRESSES {
            return Err(Unusable::Malformed(format!("{} addresses", found.len())));
        }
        Ok(found)
    }

    fn interface(&self, index: i64) -> Result<&str, Unusable> {
        let position = usize::try_from(index).ok();
        position
            .and_then(|position| self.interfaces.as_deref()?.get(position))
            .map(|interface| interface.name.as_str())
            .ok_or(Unusable::NoSuchInterface(index))
    }
}

#[cfg(test)]
mod tests;
