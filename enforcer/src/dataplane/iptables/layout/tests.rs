use super::super::settings::MarkBit;
use super::super::testing::{map, range};
use super::*;

fn layout(settings: Settings) -> Layout {
    Layout::new(settings)
}

fn usual() -> Layout {
    layout(Settings::new(range("20000-29999")))
}

#[test]
fn leaf_marks_the_pod_itself_then_translates() {
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
        usual().leaf_rules(&mappings.into()),
        [
            format!("-s 10.244.1.8/32 -d 192.0.2.1/32 {ports} -j MARK --set-xmark 0x1000/0x1000"),
            format!("-d 192.0.2.1/32 {ports} -j DNAT --to-destination 10.244.1.8:80"),
            format!("-s 10.244.1.7/32 {ports} -j MARK --set-xmark 0x1000/0x1000"),
            format!("{ports} -j DNAT --to-destination 10.244.1.7:80"),
        ]
    );
}

#[test]
fn ipv6_destination_stands_in_brackets() {
    let rules = usual().leaf_rules(&[map(Protocol::Udp, 20000, "fd00::7", 53)].into());
    assert!(
        rules[0].starts_with("-s fd00::7/128 -p udp -m udp "),
        "{}",
        rules[0]
    );
    assert!(
        rules[1].ends_with(" --to-destination [fd00::7]:53"),
        "{}",
        rules[1]
    );
}

#[test]
fn neighbours_are_marked_with_the_pod() {
    let neighbours = vec![
        "fd00::/64".parse().unwrap(),
        "10.244.1.99/24".parse().unwrap(),
    ];
    let layout = layout(Settings {
        neighbours,
        ..Settings::new(range("20000-29999"))
    });
    for (pod, sender) in [
        ("10.244.1.7", "-s 10.244.1.0/24 "),
        ("fd00::7", "-s fd00::/64 "),
        ("10.9.9.9", "-s 10.9.9.9/32 "),
    ] {
        let rules = layout.leaf_rules(&[map(Protocol::Tcp, 20000, pod, 80)].into());
        assert!(rules[0].starts_with(sender), "{}", rules[0]);
    }
}

#[test]
fn mark_is_the_configured_bit() {
    let mark: MarkBit = "0x10000".parse().unwrap();
    let layout = layout(Settings {
        mark,
        ..Settings::new(range("20000-29999"))
    });
    let chains = layout.chains(&BTreeSet::new(), &Leaves::new());
    assert_eq!(
        chains[MASQUERADE],
        [
            "-m mark ! --mark 0x10000/0x10000 -j RETURN",
            "-j MARK --set-xmark 0x0/0x10000",
            "-j MASQUERADE"
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
    assert_eq!(
        layout.entry_rules(&protocols, &leaves),
        [
            "-p tcp -m tcp --dport 20000:29999 -g PORTMAPPING-TCP",
            "-p udp -m udp --dport 20000:29999 -g PORTMAPPING-UDP",
            "-p udp -g PORTMAPPING-UDP-OTHER",
        ]
    );
    let chains = layout.chains(&protocols, &leaves);
    // entry, masquerade, one for other ports, and per protocol 1 + 21 + 455 for 10,000 ports
    assert_eq!(chains.len(), 3 + 2 * (1 + 21 + 455));
    assert_eq!(chains["PORTMAPPING-UDP-20000-20021"].len(), 2);
    assert_eq!(chains["PORTMAPPING-UDP-OTHER"].len(), 2);
}

#[test]
fn jumps_name_our_chains_and_comment() {
    for jump in JUMPS {
        assert!(jump.rule.ends_with(&format!(" -j {}", jump.to)));
        assert!(jump.rule.contains(&format!("--comment {JUMP_COMMENT} ")));
        assert!(jump.to.starts_with(CHAIN_PREFIX));
    }
}
