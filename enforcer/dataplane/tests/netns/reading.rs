//! What a check of the rules reads.

use std::fs;

use portmapping_dataplane::Dataplane as _;
use portmapping_dataplane::Flavour;
use portmapping_shared::Plan;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Lab, POD1, POD1_V6, map};
use crate::programs::Programs;

crate::for_each_flavour!(check_runs_one_program_per_family);

fn plan() -> Plan {
    Plan {
        to_create: vec![
            map(Tcp, 20000, POD1, 9040),
            map(Udp, 20000, POD1, 9040),
            map(Tcp, 20000, POD1_V6, 9040),
        ],
        ..Plan::default()
    }
}

/// Each run of iptables-nft-save reads the rules of all tables from the kernel.
fn check_runs_one_program_per_family(flavour: Flavour) {
    let lab = Lab::new();
    let programs = Programs::new(flavour);
    let runs = programs.directory.path().join("runs");
    for name in programs.names() {
        let script = format!(
            "echo {name} >> {}; exec /usr/sbin/{name} \"$@\"",
            runs.display()
        );
        programs.replace(&name, &script);
    }
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    lab.node.run(|| driver.apply(&plan())).unwrap();
    for table in ["nat -D PREROUTING 1", "mangle -D INPUT 1"] {
        assert!(lab.node.run(|| driver.observe()).unwrap().intact);
        lab.iptables(flavour, &format!("-t {table}"));
        fs::remove_file(&runs).unwrap();
        assert!(!lab.node.run(|| driver.observe()).unwrap().intact);
        let read = fs::read_to_string(&runs).unwrap();
        let mut read: Vec<&str> = read.lines().collect();
        read.sort_unstable();
        let kind = flavour.as_str().trim_start_matches("iptables");
        let expected = [
            format!("ip6tables{kind}-save"),
            format!("iptables{kind}-save"),
        ];
        assert_eq!(read, expected, "{table}");
        lab.node.run(|| driver.apply(&Plan::default())).unwrap();
    }
}

/// iptables-legacy needs `NET_RAW` in any case, and prints the rule with it.
#[test]
fn foreign_filter_rule_that_cannot_be_printed_hides_no_damage() {
    let flavour = Flavour::Nft;
    let lab = Lab::new();
    let programs = Programs::new(flavour);
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    lab.node.run(|| driver.apply(&plan())).unwrap();
    assert!(lab.node.run(|| driver.observe()).unwrap().intact);
    lab.node.sh("ipset create pods hash:net");
    lab.iptables(flavour, "-A FORWARD -m set --match-set pods src -j ACCEPT");
    let kept = "-all,+net_admin";
    for name in programs.names() {
        let script =
            format!("exec setpriv --bounding-set {kept} --inh-caps {kept} /usr/sbin/{name} \"$@\"");
        programs.replace(&name, &script);
    }
    for table in ["nat -D PREROUTING 1", "mangle -D INPUT 1"] {
        lab.iptables(flavour, &format!("-t {table}"));
        assert!(
            !lab.node.run(|| driver.observe()).unwrap().intact,
            "{table}"
        );
        lab.node.run(|| driver.apply(&Plan::default())).unwrap();
        assert!(lab.node.run(|| driver.observe()).unwrap().intact, "{table}");
    }
}
