//! A mapping with a host IP answers at that address of the node only.

use portmapping_dataplane::DataplaneError;
use portmapping_shared::Protocol::{Tcp, Udp};
use portmapping_shared::{Mapping, Plan};

use crate::lab::{
    Backend, CLIENT, Lab, NODE, NODE_V6, OTHER_NODE_ADDRESS, POD1, POD1_V6, at, ip, map,
};
use crate::serve::{ask_tcp, ask_udp, assert_refused, serve};

crate::for_each_backend!(
    restricts_to_the_address,
    rejects_an_address_of_the_other_family
);

fn restricts_to_the_address(backend: Backend) {
    let lab = Lab::new();
    lab.node.sh("ip addr add fd30::3/64 dev up0 nodad");
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let only = |mapping: Mapping, address| Mapping {
        host_ip: Some(ip(address)),
        ..mapping
    };
    lab.driver(backend).reconcile(&[
        only(map(Tcp, 20000, POD1, 9040), OTHER_NODE_ADDRESS),
        only(map(Udp, 20000, POD1, 9040), OTHER_NODE_ADDRESS),
        only(map(Tcp, 20000, POD1_V6, 9040), "fd30::3"),
    ]);
    let seen = format!("pod1 {CLIENT}");
    assert_eq!(
        ask_tcp(&lab.client, at(OTHER_NODE_ADDRESS, 20000)).unwrap(),
        seen
    );
    assert_eq!(
        ask_udp(&lab.client, at(OTHER_NODE_ADDRESS, 20000)).unwrap(),
        seen
    );
    assert!(
        ask_tcp(&lab.client, at("fd30::3", 20000))
            .unwrap()
            .starts_with("pod1 ")
    );
    assert_refused(&lab.client, at(NODE, 20000));
    assert_refused(&lab.client, at(NODE_V6, 20000));
}

fn rejects_an_address_of_the_other_family(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    let before = lab.rules(backend);
    let mixed = Mapping {
        host_ip: Some(ip(NODE_V6)),
        ..map(Tcp, 20000, POD1, 9040)
    };
    let to_create = vec![map(Tcp, 20001, POD1, 9040), mixed];
    let error = driver
        .try_apply(&Plan {
            to_create,
            ..Plan::default()
        })
        .unwrap_err();
    assert!(
        matches!(error, DataplaneError::MixedFamilies { .. }),
        "{error}"
    );
    assert_eq!(lab.rules(backend), before);
}
