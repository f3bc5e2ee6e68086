use proptest::prelude::*;

use super::*;

const DOCKER: &str = "*nat
:FORWARD DROP [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [12:720]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
";

#[test]
fn policy_and_last_rule_decide() {
    let docker = Finding::read(DOCKER);
    assert!(docker.drops && !docker.sealed && docker.ours.is_empty());
    let open = DOCKER.replace("DROP [12", "ACCEPT [12");
    let accepting = Finding::read(&open);
    assert!(!accepting.drops && !accepting.sealed && !accepting.closed);
    for seal in ["-j DROP", "-j REJECT --reject-with icmp-port-unreachable"] {
        let rule = format!("-A FORWARD {seal}\n-A DOCKER-USER");
        let sealed = Finding::read(&open.replace("-A DOCKER-USER", &rule));
        assert!(sealed.sealed && !sealed.drops, "{seal}");
    }
}

#[test]
fn chains_that_drop_everything_are_followed() {
    let sealed = |rules: &str| {
        Finding::read(&format!("*filter\n:FORWARD DROP [0:0]\n{rules}COMMIT\n")).sealed
    };
    assert!(sealed(
        "-A FORWARD -p tcp -j RETURN\n-A FORWARD -j a\n-A FORWARD -j b\n-A a -j REJECT\n"
    ));
    assert!(sealed("-A FORWARD -j a\n-A a -j b\n-A b -j DROP\n"));
    for open in [
        "-A FORWARD -j a\n-A a -j RETURN\n-A a -j REJECT\n",
        "-A FORWARD -j a\n-A a -p tcp -j RETURN\n-A a -j REJECT\n",
        "-A FORWARD -j a\n-A a -p tcp -g b\n-A a -j DROP\n",
        "-A FORWARD -j ACCEPT\n-A FORWARD -j DROP\n",
        "-A FORWARD -i eth0 -j DROP\n",
        "-A FORWARD -p tcp -j a\n-A a -j DROP\n",
        "-A FORWARD -j a\n-A a -j a\n",
    ] {
        assert!(!sealed(open), "{open}");
    }
    let ours = format!("-A FORWARD {COMMENT}-j ACCEPT\n-A FORWARD -j DROP\n");
    assert!(!sealed(&ours), "ours comes first");
}

#[test]
fn a_rule_that_drops_everything_closes_forward_where_none_before_it_can_accept() {
    let closed = |rules: &str| {
        let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n:users - [0:0]\n{rules}COMMIT\n");
        Finding::read(&text).closed
    };
    assert!(closed("-A FORWARD -j DROP\n-A FORWARD -i eth0 -j ACCEPT\n"));
    assert!(closed(
        "-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n"
    ));
    assert!(closed(
        "-A FORWARD -j LOG --log-prefix x\n-A FORWARD -i eth0 -j DROP\n-A FORWARD -j DROP\n"
    ));
    for open in [
        "",
        "-A FORWARD -i eth0 -j DROP\n",
        "-A FORWARD -i eth0 -j ACCEPT\n-A FORWARD -j DROP\n",
        "-A FORWARD -j users\n-A users -s 192.0.2.0/24 -j RETURN\n-A users -j DROP\n",
        "-A FORWARD -j NFQUEUE --queue-num 0\n-A FORWARD -j DROP\n",
        "-A FORWARD -j DROP-UNTRUSTED\n-A DROP-UNTRUSTED -m conntrack --ctstate DNAT -j ACCEPT\n-A DROP-UNTRUSTED -j DROP\n",
    ] {
        assert!(!closed(open), "{open}");
    }
    let ours = format!("-A FORWARD {COMMENT}-j ACCEPT\n-A FORWARD -j DROP\n");
    assert!(!closed(&ours), "ours comes first");
}

#[test]
fn a_chain_accepts_nothing_without_a_rule_that_can_accept() {
    let accepts_nothing = |rules: &str| {
        Finding::read(&format!("*filter\n:FORWARD DROP [0:0]\n{rules}COMMIT\n"))
            .accepts_at
            .is_none()
    };
    assert!(accepts_nothing(""));
    assert!(accepts_nothing(
        "-A FORWARD -i eth0 -j DROP\n-A FORWARD -j LOG\n"
    ));
    for rule in ["-i eth0 -j ACCEPT", "-j users", "-g users", "-j RETURN"] {
        assert!(!accepts_nothing(&format!("-A FORWARD {rule}\n")), "{rule}");
    }
}

#[test]
fn finds_rules_of_ours_only() {
    let forward = Forward::new(
        "20000-20009".parse().unwrap(),
        &PortSet::default(),
        &Tools::default(),
    );
    let [rule] = forward.rules.as_slice() else {
        panic!("{:?}", forward.rules)
    };
    let added = format!("-A FORWARD {rule}\n-A DOCKER-USER");
    let found = Finding::read(&DOCKER.replacen("-A DOCKER-USER", &added, 1));
    assert_eq!(found.ours, forward.rules);
}

#[test]
fn excluded_ports_are_left_out() {
    let mut excluded = PortSet::default();
    excluded.insert_range("20003-20004".parse().unwrap());
    excluded.insert_range("20009".parse().unwrap());
    let rules = Forward::new("20000-20009".parse().unwrap(), &excluded, &Tools::default()).rules;
    assert_eq!(rules.len(), 2);
    assert!(
        rules[0].contains("--ctorigdstport 20000:20002 "),
        "{rules:?}"
    );
    assert!(
        rules[1].contains("--ctorigdstport 20005:20008 "),
        "{rules:?}"
    );
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in "(\\*filter\n|:FORWARD |DROP|-A FORWARD |-j REJECT|portmapping|\n|[ -~é]{0,5}){0,40}") {
        let _ = Finding::read(&text);
    }
}
