use super::super::testing::{map, range};
use super::*;

fn usual() -> Layout {
    Layout::new(Family::V4, Settings::new(range("20000-29999")))
}

#[test]
fn leaf_has_one_rule_per_mapping() {
    let mappings = [
        map(Protocol::Tcp, 20000, "10.244.1.7", 80),
        Mapping {
            host_ip: Some("192.0.2.1".parse().unwrap()),
            ..map(Protocol::Tcp, 20000, "10.244.1.8", 80)
        },
    ];
    let comment = "-m comment --comment \"portmapping:8c1f3a52-uid\"";
    let ports = format!("-p tcp -m tcp --dport 20000 {comment}");
    assert_eq!(
        leaf_rules(&mappings.into()),
        [
            format!("-d 192.0.2.1/32 {ports} -j DNAT --to-destination 10.244.1.8:80"),
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
    let mappings = [map(Protocol::Tcp, 20000, "fd00::17", 80)];
    let leaves = layout.leaves(mappings);
    let pods = [("fd00::17".parse().unwrap(), 1)].into();
    let chains = layout.chains(&[Protocol::Tcp].into(), &leaves, &pods);
    let top = &chains[MASQUERADE];
    assert_eq!(
        top[0],
        "-m conntrack ! --ctorigdstport 20000:29999 -j RETURN"
    );
    assert!(top.contains(&"-d ::7/::f -g PORTMAPPING-MASQ-7".to_owned()));
    assert!(
        chains["PORTMAPPING-MASQ-7"].contains(&"-d ::10/::f0 -g PORTMAPPING-MASQ-7-1".to_owned())
    );
    assert_eq!(
        chains["PORTMAPPING-MASQ-7-1"],
        ["-s fd00::17/128 -d fd00::17/128 -g PORTMAPPING-HAIRPIN"]
    );
    assert!(chains["PORTMAPPING-MASQ-7-2"].is_empty());
    assert_eq!(chains["PORTMAPPING-HAIRPIN"], ["-j MASQUERADE"]);
}

#[test]
fn neighbours_of_the_family_are_masqueraded() {
    let neighbours = vec![
        "fd00::/64".parse().unwrap(),
        "10.244.1.99/24".parse().unwrap(),
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
            "-d 0.0.0.0/0.0.0.15 -g PORTMAPPING-MASQ-0",
        ]
    );
}

#[test]
fn entry_leads_to_the_trees_in_use() {
    let mappings = [
        map(Protocol::Udp, 20000, "10.244.1.7", 80),
        map(Protocol::Udp, 19999, "10.244.1.7", 80),
    ];
    let layout = usual();
    let leaves = layout.leaves(mappings);
    let protocols = [Protocol::Tcp, Protocol::Udp].into();
    let pods = [("10.244.1.7".parse().unwrap(), 2)].into();
    let chains = layout.chains(&protocols, &leaves, &pods);
    assert_eq!(
        chains[ENTRY],
        [
            "-p tcp -m tcp --dport 20000:29999 -g PORTMAPPING-TCP",
            "-p udp -m udp --dport 20000:29999 -g PORTMAPPING-UDP",
            "-p udp -g PORTMAPPING-UDP-OTHER",
        ]
    );
    // entry, masquerade with its 16 and 256 and the last, one for other ports, and per protocol 1 + 21 + 455 for
    // 10,000 ports
    assert_eq!(chains.len(), 2 + 16 + 256 + 1 + 1 + 2 * (1 + 21 + 455));
    assert_eq!(chains["PORTMAPPING-UDP-20000-20021"].len(), 1);
    assert_eq!(chains["PORTMAPPING-UDP-OTHER"].len(), 1);
    assert!(!chains[MASQUERADE][0].contains("ctorigdstport"));
}

#[test]
fn jumps_name_our_chains_and_comment() {
    for jump in JUMPS {
        assert!(jump.rule.ends_with(&format!(" -j {}", jump.to)));
        assert!(jump.rule.contains(&format!("--comment {JUMP_COMMENT} ")));
        assert!(jump.to.starts_with(CHAIN_PREFIX));
    }
}
