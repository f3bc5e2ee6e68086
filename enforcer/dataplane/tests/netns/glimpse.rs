//! What a start sees of the rules before it decides anything.

use std::collections::BTreeSet;

use portmapping_dataplane::Tools;
use portmapping_dataplane::glimpse::{Saved, ports_at_once};
use portmapping_dataplane::iptables::Flavour;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Backend, Lab, NODE, POD1, POD1_V6, ip, map};

crate::for_each_backend!(shows_what_is_mapped);

/// What a start has to hold before it looks closer: of both families, whatever the rules are of.
fn shows_what_is_mapped(backend: Backend) {
    let lab = Lab::new();
    let mappings = [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20001, POD1_V6, 9040),
        Mapping {
            host_ip: Some(ip(NODE)),
            ..map(Tcp, 20002, POD1, 9041)
        },
    ];
    lab.driver(backend).reconcile(&mappings);
    let ports: BTreeSet<_> = mappings
        .map(|mapping| (mapping.protocol, mapping.host_port))
        .into();
    let at_once = lab.node.run(ports_at_once);
    let [legacy, nft] = [Flavour::Legacy, Flavour::Nft].map(|flavour| {
        let saved = || Saved::read(flavour, &Tools::default());
        lab.node.run(saved).mapped_ports()
    });
    let none = BTreeSet::new;
    let wanted = match backend {
        Backend::Nftables => [ports, none(), none()],
        Backend::Iptables(Flavour::Legacy) => [none(), ports, none()],
        Backend::Iptables(Flavour::Nft) => [ports.clone(), none(), ports],
    };
    assert_eq!([at_once, legacy, nft], wanted);
}
