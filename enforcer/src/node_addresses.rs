//! The watch on this node's Node object: the addresses that it names.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ApiResource};
use kube::core::Object;
use portmapping_runtime::list_watch::{Event, ListWatch};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A node of which only the addresses are decoded.
type SlimNode = Object<Spec, Status>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Spec {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// Watches the Node object until the reconciler goes away. While it cannot be read, the enforcer
/// continues with the addresses that it knows.
pub(crate) async fn watch(
    client: Client,
    node: &str,
    addresses: watch::Sender<Option<BTreeSet<IpAddr>>>,
) {
    let api: Api<SlimNode> = Api::all_with(client.clone(), &ApiResource::erase::<Node>(&()));
    let only = format!("metadata.name={node}");
    let mut events = ListWatch::new(client, api, &only, "the Node object");
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = addresses.closed() => return,
        };
        if let Event::Listed(node) | Event::Applied(node) = event {
            note(&addresses, named(&node.status.unwrap_or_default()));
        }
    }
}

/// Sends what has changed. A Node without addresses says nothing about the node's interfaces: a kubelet that
/// registers again leaves them to the cloud's controller, and until that one answers, mapped ports must stay.
fn note(addresses: &watch::Sender<Option<BTreeSet<IpAddr>>>, named: BTreeSet<IpAddr>) {
    if named.is_empty() {
        tracing::warn!("the Node object names no address; going on with those that are known");
        return;
    }
    addresses.send_if_modified(|known| {
        let changed = known.as_ref() != Some(&named);
        *known = Some(named);
        changed
    });
}

/// Returns the node's own addresses; a hostname is none.
fn named(status: &Status) -> BTreeSet<IpAddr> {
    let addresses = status.addresses.iter().flatten();
    let own = addresses.filter(|a| matches!(a.kind.as_str(), "InternalIP" | "ExternalIP"));
    own.filter_map(|address| address.address.parse().ok())
        .map(|ip: IpAddr| ip.to_canonical())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_and_external_addresses_are_the_nodes_own() {
        let node: SlimNode = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"images": [{"sizeBytes": 7}], "addresses": [
                {"type": "InternalIP", "address": "10.0.0.11"},
                {"type": "InternalIP", "address": "fd00::11"},
                {"type": "ExternalIP", "address": "203.0.113.7"},
                {"type": "Hostname", "address": "10.0.0.99"},
                {"type": "InternalDNS", "address": "n1.example"},
                {"type": "ExternalIP", "address": "n1.example"},
            ]},
        }))
        .unwrap();
        let expected = ["10.0.0.11", "fd00::11", "203.0.113.7"];
        let expected = expected.map(|ip| ip.parse().unwrap()).into();
        assert_eq!(named(&node.status.unwrap()), expected);
        assert_eq!(named(&Status::default()), BTreeSet::new());
    }

    #[test]
    fn a_node_that_registers_without_addresses_keeps_those_that_are_known() {
        let (sender, addresses) = watch::channel(None);
        note(&sender, BTreeSet::new());
        assert_eq!(*addresses.borrow(), None, "what the start knows counts");
        let one = BTreeSet::from(["10.0.0.11".parse().unwrap()]);
        note(&sender, one.clone());
        note(&sender, BTreeSet::new());
        assert_eq!(*addresses.borrow(), Some(one));
        let other = BTreeSet::from(["10.0.0.12".parse().unwrap()]);
        note(&sender, other.clone());
        assert_eq!(*addresses.borrow(), Some(other));
    }
}
