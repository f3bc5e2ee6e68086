use proptest::prelude::*;

use super::super::testing::{any_port, any_protocol, any_range, map, range};
use super::*;
use crate::subnet::subnet;

fn usual() -> Layout {
    Layout::new(Family::V4, Settings::new(range("20000-29999")))
}

#[test]
fn rule_of_a_mapping_names_its_owner_only_if_the_rule_of_the_pod_does_not() {
    let mappings = [
        map(Protocol::Tcp, 20000, "10.244.1.7", 80),
        Mapping {
            host_ip: Some("192.0.2.1".parse().unwrap()),
            ..map(Protocol::Tcp, 20000, "10.244.1.8", 80)
        },
    ];
    let pod = |owner: &str| Pod {
        owner: owner.parse().unwrap(),
        mappings: 1,
    };
    let pods = Pods::from([
        ("10.244.1.7".parse().unwrap(), pod("8c1f3a52-uid")),
        ("10.244.1.8".parse().unwrap(), pod("another-uid")),
    ]);
    let ports = "-p tcp -m tcp --dport 20000";
    let owner = "-m comment --comment \"portmapping:8c1f3a52-uid\"";
    assert_eq!(
        leaf_rules(&mappings.into(), &pods),
        [
            format!("-d 192.0.2.1/32 {ports} {owner} -j DNAT --to-destination 10.244.1.8:80"),
            format!("{ports} -j DNAT --to-destination 10.244.1.7:80"),
        ]
    );
}

#[test]
fn ipv6_destination_stands_in_brackets() {
    let rule = mapping_rule(&map(Protocol::Udp, 20000, "fd00::7", 53));
    assert!(rule.ends_with(" --to-destination [fd00::7]:53"), "{rule}");
}

#[test]
fn pod_is_masqueraded_towards_itself_only() {
    let layout = Layout::new(Family::V6, Settings::new(range("20000-29999")));
    let owner = "uid".parse().unwrap();
    let pods = [("fd00::17".parse().unwrap(), Pod { owner, mappings: 1 })].into();
    let chains = layout.chains(&[Protocol::Tcp].into(), &Leaves::new(), &pods);
    let top = &chains[MASQUERADE];
    assert_eq!(
        top[0],
        "-m conntrack ! --ctorigdstport 20000:29999 -j RETURN"
    );
    assert!(top.contains(&"-s ::3/::3 -d ::3/::3 -g PORTMAPPING-PODS-3".to_owned()));
    let group = &chains["PORTMAPPING-PODS-3"];
    assert_eq!(group[1], "-s ::7/::f -d ::7/::f -g PORTMAPPING-MASQ-7");
    assert_eq!(group.len(), 4);
    assert_eq!(
        chains["PORTMAPPING-MASQ-7"],
        ["-s fd00::17/128 -d fd00::17/128 -m comment --comment \"portmapping:uid\" -j MASQUERADE"]
    );
    assert!(chains["PORTMAPPING-MASQ-8"].is_empty());
}

#[test]
fn neighbours_of_the_family_are_masqueraded() {
    let neighbours = vec![
        subnet("fd00::/64").unwrap(),
        subnet("10.244.1.99/24").unwrap(),
    ];
    let layout = Layout::new(
        Family::V4,
        Settings {
            neighbours,
            ..Settings::new(range("20000"))
        },
    );
    let chains = layout.chains(&BTreeSet::new(), &Leaves::new(), &Pods::new());
    assert_eq!(
        chains[MASQUERADE][..3],
        [
            "-m conntrack ! --ctorigdstport 20000 -j RETURN",
            "-s 10.244.1.0/24 -d 10.244.1.0/24 -j MASQUERADE",
            "-s 0.0.0.0/0.0.0.3 -d 0.0.0.0/0.0.0.3 -g PORTMAPPING-PODS-0",
        ]
    );
}

#[test]
fn entry_leads_to_the_protocols_in_use() {
    let mappings = [
        map(Protocol::Udp, 20000, "10.244.1.7", 80),
        map(Protocol::Udp, 19999, "10.244.1.7", 80),
    ];
    let layout = usual();
    let leaves = layout.leaves(mappings);
    let protocols = [Protocol::Tcp, Protocol::Udp].into();
    let chains = layout.chains(&protocols, &leaves, &Pods::new());
    assert_eq!(
        chains[HOST],
        [
            "-p tcp -m tcp --dport 20000:29999 -g PORTMAPPING-TCP",
            "-p udp -m udp --dport 20000:29999 -g PORTMAPPING-UDP",
            "-p udp -g PORTMAPPING-UDP-OTHER",
        ]
    );
    // two entries, masquerade and its 4 and 16 chains, one for other ports; per protocol a root, 5,
    // 25 and 125
    assert_eq!(chains.len(), 3 + 4 + 16 + 1 + 2 * (1 + 5 + 25 + 125));
    assert_eq!(chains["PORTMAPPING-UDP-0-0"].len(), 1);
    assert_eq!(chains["PORTMAPPING-UDP-OTHER"].len(), 1);
    assert!(!chains[MASQUERADE][0].contains("ctorigdstport"));
}

#[test]
fn entry_leads_on_from_the_host_addresses_of_the_family() {
    let addresses = ["192.0.2.1", "192.0.2.9", "2001:db8::1"];
    let settings = Settings {
        host_addresses: addresses.map(|ip| ip.parse().unwrap()).into(),
        ..Settings::new(range("20000"))
    };
    for (family, rules) in [
        (
            Family::V4,
            &[
                "-d 192.0.2.1/32 -g PORTMAPPING-HOST",
                "-d 192.0.2.9/32 -g PORTMAPPING-HOST",
            ][..],
        ),
        (Family::V6, &["-d 2001:db8::1/128 -g PORTMAPPING-HOST"]),
    ] {
        let layout = Layout::new(family, settings.clone());
        let chains = layout.frame(&BTreeSet::new(), &Leaves::new());
        assert_eq!(chains[ENTRY], rules);
        let read = BTreeMap::from([(ENTRY, chains[ENTRY].iter().map(String::as_str).collect())]);
        let of_family = addresses.map(|ip| ip.parse::<IpAddr>().unwrap());
        let of_family = of_family.into_iter().filter(|ip| Family::of(*ip) == family);
        assert_eq!(layout.host_addresses_in(&read), of_family.collect());
    }
}

#[test]
fn jumps_name_our_chains_and_comment() {
    for jump in JUMPS {
        assert!(jump.rule.ends_with(&format!(" -j {}", jump.to)));
        assert!(jump.rule.contains(&format!("--comment {JUMP_COMMENT} ")));
        assert!(jump.to.starts_with(CHAIN_PREFIX));
    }
}

/// Follows the jumps and returns the chain in which a packet to this port ends.
fn followed(chains: &Chains, protocol: Protocol, port: u16) -> Option<String> {
    let mut chain = HOST.to_owned();
    for _ in 0..4 {
        let jumps = chains[&chain].iter().filter_map(|rule| {
            let mut words = rule.split(' ').skip_while(|word| *word != "--dport");
            let ports = words.nth(1)?;
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            let ports = first.parse::<u16>().unwrap()..=last.parse::<u16>().unwrap();
            let ours = rule.starts_with(&format!("-p {} ", protocol.as_kernel_str()));
            (ours && ports.contains(&port)).then(|| words.last().unwrap().to_owned())
        });
        let jumps: Vec<String> = jumps.collect();
        assert!(jumps.len() <= 1, "{jumps:?}");
        chain = jumps.into_iter().next()?;
    }
    Some(chain)
}

proptest! {
    #[test]
    fn every_port_of_any_range_leads_to_its_leaf(
        range in any_range(),
        port in any_port(),
        protocol in any_protocol(),
    ) {
        let layout = Layout::new(Family::V4, Settings::new(range));
        let chains = layout.frame(&[protocol].into(), &Leaves::new());
        for chain in chains.keys() {
            prop_assert!(chain.len() <= 28, "{} is longer than iptables takes", chain);
        }
        for rules in chains.values() {
            prop_assert!(rules.len() <= usize::from(BUCKETS) + 1);
        }
        for port in [range.first(), range.last(), port] {
            let mapping = map(protocol, port.get(), "10.244.1.7", 80);
            let leaf = layout.leaf(&mapping);
            let found = followed(&chains, protocol, port.get());
            if range.contains(port) {
                prop_assert_eq!(found, Some(leaf));
            } else {
                prop_assert_eq!(found, None);
                prop_assert!(leaf.ends_with("-OTHER"));
            }
        }
    }
}
