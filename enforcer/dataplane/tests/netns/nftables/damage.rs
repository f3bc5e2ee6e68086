//! Damage to the table is detected and repaired, and connections survive.

use super::{Damaged, mappings};
use crate::lab::{self, Backend, NODE, POD1, POD2, at};
use crate::serve::Conversation;

/// Masquerades with one set element per pod, instead of a comparison of addresses.
const EARLIER_HAIRPINS: &str = "
    add set inet portmapping hairpin4 { type ipv4_addr . ipv4_addr; }
    add element inet portmapping hairpin4 { 10.88.0.11 . 10.88.0.11, 10.88.0.12 . 10.88.0.12 }
    flush chain inet portmapping postrouting
    add rule inet portmapping postrouting ip saddr . ip daddr @hairpin4 ct status dnat masquerade
    delete set inet portmapping same";

#[test]
fn everything_gone() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    for script in ["flush ruleset", "delete table inet portmapping"] {
        damaged.nft(script);
        // a ruleset without our table is not damaged; the missing mappings are enough to act on
        damaged.assert_repaired(&mut driver, 6, true);
    }
    damaged.nft("flush table inet portmapping");
    damaged.assert_repaired(&mut driver, 0, false);
}

#[test]
fn frame_changed() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    let whole = damaged.lab.rules(Backend::Nftables);
    let jump = "ip daddr @hosts4 dnat ip to meta l4proto . th dport map @ports4";
    for (script, lost) in [
        ("flush chain inet portmapping prerouting", 0),
        ("flush chain inet portmapping postrouting", 0),
        ("delete chain inet portmapping output", 0),
        ("insert rule inet portmapping prerouting accept", 0),
        ("add rule inet portmapping input udp dport 1 drop", 0),
        ("add chain inet portmapping strange", 0),
        ("chain inet portmapping input { policy drop; }", 0),
        ("add table inet portmapping { flags dormant; }", 0),
        ("add element inet portmapping excluded { 25000 }", 0),
        ("flush set inet portmapping same", 0),
        (
            "delete element inet portmapping same { 7 . 7 }
             add element inet portmapping same { 7 . 8 }",
            0,
        ),
        // how an earlier version masqueraded pods that connect to themselves
        (EARLIER_HAIRPINS, 0),
        // chains of the same name and rules with another hook
        (
            "delete chain inet portmapping prerouting
             add chain inet portmapping prerouting { type nat hook prerouting priority -50; }
             add rule inet portmapping prerouting JUMP",
            0,
        ),
        // a map of another type
        (
            "flush chain inet portmapping prerouting
             flush chain inet portmapping output
             flush chain inet portmapping postrouting
             flush chain inet portmapping input
             delete map inet portmapping bound4
             add map inet portmapping bound4 { type ipv4_addr : ipv4_addr; }",
            1,
        ),
    ] {
        damaged.nft(&script.replace("JUMP", jump));
        damaged.assert_repaired(&mut driver, lost, false);
        let repaired = damaged.lab.rules(Backend::Nftables);
        // elements have no order
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.split(',').map(str::to_owned).collect();
            lines.sort();
            (lines.len(), text.len())
        };
        assert_eq!(sorted(&repaired), sorted(&whole), "{script}");
    }
}

#[test]
fn elements_deleted_overwritten_or_emptied() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    let element = "inet portmapping ports4 { tcp . 20000 }";
    let comment = r#"comment "portmapping:uid-of-another""#;
    for (script, lost, intact) in [
        (format!("delete element {element}"), 1, true),
        // a new target without a comment: the last read knows the element as ours, so it is
        // repaired
        (
            format!(
                "delete element {element}
                 add element inet portmapping ports4 {{ tcp . 20000 : {POD2} . 9040 }}"
            ),
            1,
            false,
        ),
        ("flush map inet portmapping ports4".to_owned(), 4, true),
    ] {
        damaged.nft(&script);
        damaged.assert_repaired(&mut driver, lost, intact);
    }
    // our element with another pod's uid is another mapping, which is not desired
    damaged.nft(&format!(
        "delete element {element}
         add element inet portmapping ports4 {{ tcp . 20000 {comment} : {POD1} . 9040 }}"
    ));
    damaged.assert_repaired(&mut driver, 0, true);
}

/// The element for all other keys would send them to this pod.
#[test]
fn an_element_for_all_other_keys_is_removed() {
    let damaged = Damaged::new();
    let probe = "nft 'add table ip p; add map ip p m { type inet_service : ipv4_addr; }'
        nft 'add element ip p m { * : 192.0.2.1 }' 2>/dev/null && echo yes || echo no
        nft delete table ip p";
    if damaged.lab.node.sh(probe).trim() == "no" {
        lab::skip("the kernel has no elements for all other keys", (5, 13));
        return;
    }
    let mut driver = damaged.driver();
    damaged.nft(&format!(
        "add element inet portmapping ports4 {{ * : {POD2} . 9040 }}"
    ));
    damaged.assert_repaired(&mut driver, 0, false);
}

#[test]
fn connections_live_through_repairs() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    let mut conversation = Conversation::open(&damaged.lab.client, at(NODE, 20000)).unwrap();
    for script in [
        "flush chain inet portmapping prerouting",
        "flush map inet portmapping ports4",
        "add chain inet portmapping strange",
        EARLIER_HAIRPINS,
    ] {
        damaged.nft(script);
        driver.reconcile(&mappings());
        conversation.goes_on();
    }
    // a start with the rules of an earlier version is a repair too
    damaged.nft(EARLIER_HAIRPINS);
    let mut successor = damaged.lab.driver(Backend::Nftables);
    damaged.assert_repaired(&mut successor, 0, false);
    conversation.goes_on();
}
