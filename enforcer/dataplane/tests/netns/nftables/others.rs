//! Elements, rules and services of other programs are not overwritten, not lost and not blocked.

use portmapping_dataplane::DataplaneError;
use portmapping_shared::Protocol::{Tcp, Udp};
use portmapping_shared::{Mapping, Plan};

use super::{Damaged, mappings};
use crate::lab::{Backend, Lab, NODE, NODE_V6, POD1, POD2, at, map};
use crate::serve::{ask_tcp, ask_udp, serve};

#[test]
fn element_of_another_program_is_neither_overwritten_nor_lost() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    damaged.nft(&format!(
        "add element inet portmapping ports4 {{ tcp . 20007 comment \"mine\" : {POD2} . 9040, 47 . 7 : {POD2} . 7 }}"
    ));
    let observed = driver.observe();
    assert_eq!(observed.mappings, mappings().into_iter().collect());
    assert!(observed.intact, "an element of another is no damage");
    let wanted = map(Tcp, 20007, POD1, 9040);
    let neighbour = map(Udp, 20007, POD1, 9040);
    let plan = |to_create: &[Mapping]| Plan {
        to_create: to_create.to_vec(),
        ..Plan::default()
    };
    let error = driver
        .try_apply(&plan(&[neighbour.clone(), wanted.clone()]))
        .unwrap_err();
    assert!(
        matches!(&error, DataplaneError::ForeignElement { mapping } if **mapping == wanted),
        "{error}"
    );
    driver.assert_is(&mappings().into_iter().collect());
    // other mappings still work
    driver.create(&[neighbour]);
    // a repair of the whole table keeps foreign elements
    damaged.nft("add chain inet portmapping strange");
    assert!(!driver.observe().intact);
    driver.reconcile(&mappings());
    let rules = damaged.lab.rules(Backend::Nftables);
    assert!(
        rules.contains("tcp . 20007 comment \"mine\" : 10.88.0.12 . 9040"),
        "{rules}"
    );
    assert!(
        rules.contains("47 . 7") || rules.contains("gre . 7"),
        "{rules}"
    );
    assert!(!rules.contains("strange"), "{rules}");
}

#[test]
fn element_added_after_the_last_read_is_found_by_the_refusal() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    // the driver has not read the table since then
    damaged.nft(&format!(
        "add element inet portmapping ports4 {{ tcp . 20150 : {POD2} . 9040 }}
         delete element inet portmapping ports4 {{ tcp . 20001 }}"
    ));
    let many: Vec<Mapping> = (20100..20200)
        .map(|port| map(Tcp, port, POD1, 9040))
        .collect();
    let error = driver
        .try_apply(&Plan {
            to_create: many.clone(),
            ..Plan::default()
        })
        .unwrap_err();
    assert!(
        matches!(&error, DataplaneError::ForeignElement { mapping } if **mapping == many[50]),
        "{error}"
    );
    assert_eq!(
        driver.observe().mappings.len(),
        5,
        "one bad element undoes all"
    );
    // deleting an element that is deleted already is not an error
    let mut driver = damaged.driver();
    damaged.nft("delete element inet portmapping ports4 { tcp . 20001 }");
    driver.remove(&[map(Tcp, 20001, POD2, 9040)]);
    assert_eq!(driver.observe().mappings.len(), 5);
}

#[test]
fn services_of_others_in_the_range_answer() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(Backend::Nftables);
    driver.reconcile(&[map(Udp, 20001, POD1, 9040)]);
    let _other_service = serve(&lab.node, "node", 20000);
    for from in [&lab.client, &lab.node] {
        assert!(ask_udp(from, at(NODE, 20000)).unwrap().starts_with("node"));
        assert!(
            ask_udp(from, at(NODE_V6, 20000))
                .unwrap()
                .starts_with("node")
        );
        assert!(ask_tcp(from, at(NODE, 20000)).unwrap().starts_with("node"));
    }
}

#[test]
fn wins_over_portmap_without_being_repaired() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let mut driver = lab.driver(Backend::Nftables);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040)]);
    lab.node.sh(&format!(
        "iptables-nft -t nat -I PREROUTING -p tcp --dport 20000 -j DNAT --to {POD2}:9040"
    ));
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
    assert!(driver.observe().intact);
}
