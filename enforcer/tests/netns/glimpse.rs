//! What a start sees of the rules before it decides anything.

use portmapping_enforcer::dataplane::Tools;
use portmapping_enforcer::dataplane::glimpse::Glimpse;
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
    let glimpse = lab
        .node
        .run(|| Glimpse::take(&Tools::default()).mapped_ports());
    let ports = mappings.map(|mapping| (mapping.protocol, mapping.host_port));
    assert_eq!(glimpse, ports.into());
}
