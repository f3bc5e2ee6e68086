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
    assert_eq!(Finding::read(&open), Finding::default());
    for seal in ["-j DROP", "-j REJECT --reject-with icmp-port-unreachable"] {
        let rule = format!("-A FORWARD {seal}\n-A DOCKER-USER");
        let sealed = Finding::read(&open.replace("-A DOCKER-USER", &rule));
        assert!(sealed.sealed && !sealed.drops, "{seal}");
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
