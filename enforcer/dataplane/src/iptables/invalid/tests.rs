use std::collections::BTreeSet;

use super::super::testing::range;
use super::*;
use crate::exec::Tools;
use crate::flavour::Flavour;
use portmapping_shared::{HostPort, PortSet};

fn settings(addresses: &[&str]) -> Settings {
    let mut excluded = PortSet::default();
    excluded.insert_range(range("20010-20019"));
    Settings {
        excluded,
        static_ports: Some(BTreeSet::new()),
        host_addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Settings::new(range("20000-20020"))
    }
}

fn rules(addresses: &[&str]) -> InvalidRules {
    let commands = Commands::new(Family::V4, Flavour::Nft, Tools::default());
    InvalidRules::new(commands, &settings(addresses))
}

const WHOLE: &str = "*mangle
:INPUT ACCEPT [0:0]
:PORTMAPPING - [0:0]
:PORTMAPPING-DROP - [0:0]
-A INPUT -s 192.0.2.1/32 -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -m comment --comment portmapping -j PORTMAPPING
-A PORTMAPPING -d 172.30.0.1/32 -g PORTMAPPING-DROP
-A PORTMAPPING-DROP -p tcp -m tcp --dport 20000:20009 -j DROP
-A PORTMAPPING-DROP -p tcp -m tcp --dport 20020 -j DROP
-A PORTMAPPING-DROP -p udp -m udp --dport 20000:20009 -j DROP
-A PORTMAPPING-DROP -p udp -m udp --dport 20020 -j DROP
-A PORTMAPPING-DROP -p sctp -m sctp --dport 20000:20009 -j DROP
-A PORTMAPPING-DROP -p sctp -m sctp --dport 20020 -j DROP
COMMIT
";

#[test]
fn excluded_ports_and_addresses_of_others_are_left_alone() {
    let mut rules = rules(&["172.30.0.1", "fd30::1"]);
    rules.take(WHOLE);
    assert!(rules.is_intact(), "{:?}", rules.repair);
}

#[test]
fn static_host_ports_are_left_alone_and_stay_so_until_they_are_known() {
    let port = |number| (Protocol::Tcp, HostPort::new(number).unwrap());
    let with = |ports: &[u16]| Settings {
        static_ports: Some(ports.iter().copied().map(port).collect()),
        ..settings(&["172.30.0.1"])
    };
    let whole = "-p tcp -m tcp --dport 20000:20009";
    let earlier = WHOLE.replace(whole, "-p tcp -m tcp --dport 20001:20009");
    let mut rules = rules(&["172.30.0.1"]);
    rules.set(&Settings {
        static_ports: None,
        ..settings(&["172.30.0.1"])
    });
    rules.take(&earlier);
    assert!(rules.is_intact(), "what an earlier run left out");
    rules.set(&with(&[20_000]));
    rules.take(&earlier);
    assert!(rules.is_intact(), "{:?}", rules.repair);
    rules.take(WHOLE);
    assert!(!rules.is_intact(), "20000/TCP is a pod's own");
    rules.set(&with(&[]));
    rules.take(&earlier);
    assert!(!rules.is_intact(), "no pod has it any more");
}

#[test]
fn whatever_is_missing_changed_or_added_is_repaired() {
    let mut rules = rules(&["172.30.0.1"]);
    for line in WHOLE.lines().filter(|line| line.contains("PORTMAPPING")) {
        if !line.starts_with(':') {
            rules.take(&WHOLE.replace(&format!("{line}\n"), ""));
            assert!(!rules.is_intact(), "without {line}");
            rules.take(&WHOLE.replace(line, &format!("{line}\n{line}")));
            assert!(!rules.is_intact(), "twice {line}");
        }
    }
    rules.take(&WHOLE.replace("-s 192.0.2.1/32 -j ACCEPT", "-j LOG"));
    assert!(rules.is_intact(), "a rule of another program");
    rules.take(&WHOLE.replace("*mangle", "*raw"));
    assert!(!rules.is_intact());
    rules.set(&settings(&["172.30.0.9"]));
    rules.take(WHOLE);
    let text = rules.repair.unwrap().text_for(MANGLE).unwrap();
    assert_eq!(
        text,
        "*mangle\n:PORTMAPPING - [0:0]\n-A PORTMAPPING -d 172.30.0.9/32 -g PORTMAPPING-DROP\nCOMMIT\n"
    );
}
