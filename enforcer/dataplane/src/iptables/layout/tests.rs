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
    let ports = "-p tcp -m tcp --dport 20000";
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

/// What one packet of a comparison is told, as the kernel runs it: whether it matches.
fn runs(bytecode: &str, packet: &[u8]) -> bool {
    let (length, steps) = bytecode.split_once(',').unwrap();
    let steps: Vec<Vec<usize>> = steps
        .split(',')
        .map(|step| step.split(' ').map(|n| n.parse().unwrap()).collect())
        .collect();
    assert_eq!(steps.len(), length.parse::<usize>().unwrap());
    let (mut a, mut x, mut at) = (0, 0, 0);
    loop {
        let [code, yes, no, k] = steps[at][..] else {
            panic!("{bytecode}")
        };
        at += 1;
        match code {
            0x20 => a = u32::from_be_bytes(packet[k..k + 4].try_into().unwrap()),
            0x07 => x = a,
            0x1d => at += if a == x { yes } else { no },
            0x06 => return k != 0,
            other => panic!("{other} in {bytecode}"),
        }
    }
}

#[test]
fn packet_to_its_sender_is_masqueraded() {
    for (family, length, source, destination, bytes) in
        [(Family::V4, 20, 12, 16, 4), (Family::V6, 40, 8, 24, 16)]
    {
        let rule = comparison(family);
        let bytecode = rule.split('"').nth(1).unwrap();
        assert!(rule.ends_with("\" -j MASQUERADE"));
        let mut packet = vec![0x5a; length];
        for byte in 0..bytes {
            let address = u8::try_from(byte).unwrap() + 1;
            packet[source + byte] = address;
            packet[destination + byte] = address;
        }
        assert!(runs(bytecode, &packet));
        for at in 0..length {
            let mut other = packet.clone();
            other[at] ^= 0x80;
            assert_eq!(runs(bytecode, &other), at < source, "{family} byte {at}");
        }
    }
}

#[test]
fn masquerading_needs_no_rule_per_pod() {
    let layout = Layout::new(Family::V4, Settings::new(range("20000-29999")));
    let chains = layout.chains(&[Protocol::Tcp].into(), &Leaves::new(), &Pods::new());
    assert!(!layout.has_pod_rules());
    assert_eq!(
        chains[MASQUERADE],
        [
            "-m conntrack ! --ctorigdstport 20000:29999 -j RETURN",
            "-m bpf --bytecode \"6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0\" -j MASQUERADE",
        ]
    );
}

#[test]
fn pod_is_masqueraded_towards_itself_only() {
    let mut layout = Layout::new(Family::V6, Settings::new(range("20000-29999")));
    layout.set_hairpin(Hairpin::PerPod);
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
    let mut layout = Layout::new(
        Family::V4,
        Settings {
            neighbours,
            ..Settings::new(range("20000"))
        },
    );
    layout.set_hairpin(Hairpin::PerPod);
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
    let chains = layout.chains(&protocols, &leaves, &Pods::new());
    assert_eq!(
        chains[ENTRY],
        [
            "-p tcp -m tcp --dport 20000:29999 -g PORTMAPPING-TCP",
            "-p udp -m udp --dport 20000:29999 -g PORTMAPPING-UDP",
            "-p udp -g PORTMAPPING-UDP-OTHER",
        ]
    );
    // entry, masquerade, one for other ports, per protocol 1 + 21 + 455 for 10,000 ports, and the
    // notes of two leaves
    assert_eq!(chains.len(), 2 + 1 + 2 * (1 + 21 + 455) + 2);
    for (notes, leaf) in [
        ("PORTMAPPING-UID-UDP-20000", "PORTMAPPING-UDP-20000-20021"),
        ("PORTMAPPING-UID-UDP-OTHER", "PORTMAPPING-UDP-OTHER"),
    ] {
        assert_eq!(chains[notes].len(), 1);
        assert_eq!(layout.leaf_of_notes(notes).as_deref(), Some(leaf));
    }
    assert_eq!(layout.leaf_of_notes("PORTMAPPING-UID-UDP-20001"), None);
    assert_eq!(layout.leaf_of_notes("PORTMAPPING-UID-TCP"), None);
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
