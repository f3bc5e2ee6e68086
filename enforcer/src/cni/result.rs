//! What a CNI result file says of a pod. Bytes in, values out.
//!
//! The format is libcni's `cachedInfo` (containernetworking/cni, libcni/api.go): JSON of kind
//! `cniCacheV1`, around a result of any version of the CNI specification. Only the runtime writes
//! there, but nothing in it is believed before it is checked: an address in it becomes a rule.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use portmapping_enforcer_core::{Sandbox, SandboxId};
use portmapping_shared::PodUid;
use portmapping_shared::pod::canonical_ip;
use serde::Deserialize;

/// Largest file worth reading, bytes; real ones have 1 to 4 KiB.
pub const MAX_SIZE: usize = 1 << 20;
/// What libcni names its format.
const KIND: &str = "cniCacheV1";
/// The interface whose addresses the kubelet reports as the pod's: containerd and CRI-O name it so,
/// always. `lo` and further networks (Multus: net1, net2, ...) have files of their own.
const POD_INTERFACE: &str = "eth0";
/// Addresses of one interface; two is usual, one of each family.
const MAX_ADDRESSES: usize = 16;

/// Why a file of the cache is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// More than [`MAX_SIZE`] bytes.
    #[error("it is larger than {MAX_SIZE} bytes")]
    TooLarge,
    /// Empty, cut off, or no JSON of this shape.
    #[error("it is no CNI result: {0}")]
    Malformed(String),
    /// Some other format, such as the bare results of libcni before 0.8.
    #[error("its kind is {0:?}, not {KIND}")]
    OtherKind(String),
    /// The runtime does not say which pod it is for.
    #[error("its cniArgs have no usable K8S_POD_UID")]
    NoPod,
    /// Nothing a file name or a log line may carry.
    #[error("{0:?} is no container id")]
    NoSandbox(String),
    /// An address that is none.
    #[error("{0:?} is no address with a prefix length")]
    NotAnAddress(String),
    /// Points to an interface that the result does not have.
    #[error("an address belongs to interface {0}, which is not listed")]
    NoSuchInterface(i64),
    /// Every address is one that no pod can have.
    #[error("none of its addresses can be a pod's")]
    NoAddress,
}

/// Reads a result. None: it is fine, and not about the pod's own interface.
///
/// `written` is when the file was last written (since the Unix epoch), `of_node` says whether an
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
        // its words repeat the text that it did not expect, however long
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
    // as containerd orders them, and so the kubelet where the node's first address is IPv4
    ips.sort_by_key(IpAddr::is_ipv6);
    Ok(Some(Sandbox {
        uid,
        id,
        ips,
        written,
    }))
}

/// Two different uids are as bad as none.
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

/// An address in CIDR notation, as every version of the specification has it.
fn address(text: &str) -> Option<IpAddr> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    (prefix <= longest).then(|| canonical_ip(ip))
}

/// Whether packets to this address can leave the node's own stack and reach one interface.
fn fits_a_pod(ip: IpAddr) -> bool {
    let nowhere = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    let bound_to_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip == Ipv4Addr::BROADCAST || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !nowhere && !bound_to_link
}

/// Strange text, short enough for a log line.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// libcni's `cachedInfo`; the network's configuration and everything else in it is skipped. Go may
/// write null for an empty array or object.
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
    /// The addresses of the pod's interface: those that name it and, as plugins with a single
    /// interface leave that out, those that name none. The runtimes read results this way.
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
