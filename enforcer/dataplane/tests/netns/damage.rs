//! Damage by other programs is detected, and the next reconciliation repairs it.

use portmapping_dataplane::Flavour;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Driver, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, map};
use crate::serve::{Server, ask_tcp, ask_udp, serve};

crate::for_each_flavour!(
    everything_gone,
    table_flushed,
    jumps_removed,
    jumps_doubled_moved_or_edited,
    leaf_emptied,
    rule_edited,
    owners_edited,
    foreign_rule_in_our_chains,
    range_jump_removed,
);

struct Damaged {
    lab: Lab,
    flavour: Flavour,
    _servers: [Server; 2],
}

impl Damaged {
    fn new(flavour: Flavour) -> Self {
        let lab = Lab::new();
        let servers = [
            serve(&lab.pod1, "pod1", 9040),
            serve(&lab.pod2, "pod2", 9040),
        ];
        Self {
            lab,
            flavour,
            _servers: servers,
        }
    }

    fn mappings() -> Vec<Mapping> {
        vec![
            map(Tcp, 20000, POD1, 9040),
            map(Udp, 20000, POD1, 9040),
            map(Tcp, 20001, POD2, 9040),
            map(Tcp, 20000, POD1_V6, 9040),
        ]
    }

    fn driver(&self) -> Driver<'_> {
        let mut driver = self.lab.driver(self.flavour);
        driver.reconcile(&Self::mappings());
        driver
    }

    fn iptables(&self, args: &str) {
        self.lab.iptables(self.flavour, args);
    }

    /// Asserts that the damage is detected, and that a reconciliation restores all rules.
    fn assert_repaired(&self, driver: &mut Driver<'_>, mappings_lost: usize, intact: bool) {
        let observed = driver.observe();
        assert_eq!(
            observed.mappings.len(),
            Self::mappings().len() - mappings_lost
        );
        assert_eq!(observed.intact, intact);
        driver.reconcile(&Self::mappings());
        let pod1 = |answer: std::io::Result<String>| assert!(answer.unwrap().starts_with("pod1"));
        pod1(ask_tcp(&self.lab.client, at(NODE, 20000)));
        pod1(ask_udp(&self.lab.client, at(NODE, 20000)));
        pod1(ask_tcp(&self.lab.client, at(NODE_V6, 20000)));
        pod1(ask_tcp(&self.lab.node, at(NODE, 20000)));
        pod1(ask_tcp(&self.lab.pod1, at(NODE, 20000)));
        assert!(
            ask_tcp(&self.lab.client, at(NODE, 20001))
                .unwrap()
                .starts_with("pod2")
        );
    }
}

fn everything_gone(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    for program in [
        flavour.to_string(),
        flavour.to_string().replace("iptables", "ip6tables"),
    ] {
        damaged.lab.node.sh(&format!(
            "{program} -w 30 -t nat -F; {program} -w 30 -t nat -X"
        ));
    }
    // a table without anything of ours is not damaged; the missing mappings are enough to act on
    damaged.assert_repaired(&mut driver, 4, true);
}

fn table_flushed(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    damaged.iptables("-t nat -F");
    damaged.assert_repaired(&mut driver, 3, false);
}

fn jumps_removed(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    for chain in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
        damaged.iptables(&format!("-t nat -F {chain}"));
        damaged.assert_repaired(&mut driver, 0, false);
    }
}

fn jumps_doubled_moved_or_edited(flavour: Flavour) {
    const JUMP: &str = "-m comment --comment portmapping -j PORTMAPPING";
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    for (change, reported) in [
        (
            format!("-A PREROUTING -m addrtype --dst-type LOCAL {JUMP}"),
            true,
        ),
        ("-I PREROUTING -s 192.0.2.1 -j ACCEPT".to_owned(), false),
        (
            format!("-R OUTPUT 1 -m addrtype ! --dst-type LOCAL {JUMP}"),
            true,
        ),
        ("-I POSTROUTING -s 192.0.2.1 -j ACCEPT".to_owned(), false),
    ] {
        damaged.iptables(&format!("-t nat {change}"));
        // rules of others before a jump are no damage: the read itself moves the jump
        damaged.assert_repaired(&mut driver, 0, !reported);
        // of each family, two in table nat and one in table mangle
        assert_eq!(
            damaged.lab.rules(flavour).matches("PORTMAPPING\n").count(),
            6,
            "{change}"
        );
    }
}

fn leaf_emptied(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    damaged.iptables("-t nat -F PORTMAPPING-TCP-0-0");
    // an empty leaf does not count as damaged
    damaged.assert_repaired(&mut driver, 2, true);
}

fn rule_edited(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    let leaf = "PORTMAPPING-TCP-0-0";
    // the rule of port 20000
    damaged.iptables(&format!(
        "-t nat -R {leaf} 1 -p tcp --dport 20000 -m comment --comment portmapping:uid-10-88-0-11 -j DNAT --to {POD2}:9040"
    ));
    assert!(
        ask_tcp(&damaged.lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod2")
    );
    // it is read as a mapping that is not desired
    damaged.assert_repaired(&mut driver, 0, false);
    damaged.iptables(&format!("-t nat -D {leaf} 1"));
    damaged.assert_repaired(&mut driver, 1, true);
}

fn owners_edited(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    // the chain of the addresses that end in 11
    let pods = "PORTMAPPING-MASQ-11";
    let rule = format!("-s {POD1} -d {POD1}");
    // rules whose pod names no owner are not mappings
    damaged.iptables(&format!("-t nat -R {pods} 1 {rule} -j MASQUERADE"));
    damaged.assert_repaired(&mut driver, 2, false);
    damaged.iptables(&format!("-t nat -F {pods}"));
    damaged.assert_repaired(&mut driver, 2, false);
    // with another owner they are mappings that are not desired
    let other = "-m comment --comment portmapping:uid-of-another";
    damaged.iptables(&format!("-t nat -R {pods} 1 {rule} {other} -j MASQUERADE"));
    damaged.assert_repaired(&mut driver, 0, false);
    // a rule that names another owner itself
    let leaf = "PORTMAPPING-TCP-0-0";
    let rule = format!("-p tcp --dport 20000 -j DNAT --to {POD1}:9040");
    damaged.iptables(&format!("-t nat -R {leaf} 1 {rule} {other}"));
    damaged.assert_repaired(&mut driver, 0, false);
}

fn foreign_rule_in_our_chains(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    for chain in ["PORTMAPPING", "PORTMAPPING-TCP", "PORTMAPPING-TCP-0-0"] {
        damaged.iptables(&format!("-t nat -I {chain} -j ACCEPT"));
        damaged.assert_repaired(&mut driver, 0, false);
    }
}

fn range_jump_removed(flavour: Flavour) {
    let damaged = Damaged::new(flavour);
    let mut driver = damaged.driver();
    damaged.iptables("-t nat -D PORTMAPPING-TCP-0 1");
    damaged.assert_repaired(&mut driver, 0, false);
}
