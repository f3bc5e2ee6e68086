//! Nodes whose FORWARD chain drops packets that no rule accepts.

use portmapping_dataplane::Flavour;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{
    self, Backend, Driver, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, iptables_of, map, open,
    range,
};
use crate::programs::Programs;
use crate::serve::{UdpClient, ask_tcp, serve};

crate::for_each_backend!(
    mapped_pods_are_reached_past_the_policy,
    rule_follows_the_policy,
    rule_stays_while_flushed_mappings_are_missing,
    only_mapped_connections_are_accepted,
    rules_that_drop_before_the_end_stay,
    policy_of_the_other_kind_of_iptables_is_passed,
);

/// The tables as Docker makes them.
const DOCKER: &str = "*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING ! -o docker0 -m mark --mark 0x77 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*mangle
-A INPUT -i docker0 -j ACCEPT
COMMIT
";

fn docker_host(flavour: Flavour) -> Lab {
    let lab = Lab::new();
    let restore = format!("{flavour}-restore");
    lab.node.feed(&restore, &[], DOCKER);
    lab.node
        .feed(&restore.replace("iptables", "ip6tables"), &[], DOCKER);
    lab
}

/// One port of the first pod: TCP and UDP, both families.
pub(crate) fn mappings() -> Vec<Mapping> {
    vec![
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
        map(Udp, 20000, POD1_V6, 9040),
    ]
}

pub(crate) fn assert_reached(lab: &Lab) {
    for node in [NODE, NODE_V6] {
        let answer = ask_tcp(&lab.client, at(node, 20000)).unwrap();
        assert!(answer.starts_with("pod1"), "{node}: {answer}");
        UdpClient::new(&lab.client, at(node, 20000)).hears("pod1");
    }
}

fn dropped(lab: &Lab, node: &str, port: u16) -> bool {
    let client = UdpClient::new(&lab.client, at(node, port));
    client.ask(std::time::Duration::from_millis(300)).is_err()
}

fn ours(lab: &Lab, flavour: Flavour) -> usize {
    let rules = lab.rules(flavour);
    let ours = |line: &&str| line.starts_with("-A FORWARD") && line.contains("portmapping");
    rules.lines().filter(ours).count()
}

fn mapped_pods_are_reached_past_the_policy(backend: Backend) {
    let flavour = iptables_of(backend);
    let lab = docker_host(flavour);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let before = lab.rules(flavour);
    let mut driver = lab.driver(backend);
    driver.reconcile(&[]);
    assert_eq!(lab.rules(flavour), before, "nothing is mapped yet");
    driver.reconcile(&mappings());
    assert_reached(&lab);
    let rules = lab.rules(flavour);
    let forward: Vec<&str> = rules
        .lines()
        .filter(|line| line.starts_with("-A FORWARD"))
        .collect();
    for chain in forward.chunks(6) {
        assert!(chain[0].ends_with("DOCKER-USER"), "{chain:?}");
        assert!(
            chain[5].contains("--ctorigdstport"),
            "it is not the last: {chain:?}"
        );
    }
    assert_eq!(rules.matches(":FORWARD DROP").count(), 2);
    driver.uninstall();
    assert_eq!(lab.rules(flavour), before);
}

fn rule_follows_the_policy(backend: Backend) {
    let flavour = iptables_of(backend);
    let lab = docker_host(flavour);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    assert_eq!(ours(&lab, flavour), 2);
    // another program flushes the chain
    lab.iptables(flavour, "-F FORWARD");
    assert!(dropped(&lab, NODE, 20000));
    assert!(!driver.observe().intact, "a closed FORWARD was not seen");
    driver.reconcile(&mappings());
    assert_reached(&lab);
    lab.iptables(flavour, "-P FORWARD ACCEPT");
    assert!(driver.observe().intact);
    assert_eq!(ours(&lab, flavour), 1, "IPv6 alone needs it");
    lab.iptables(flavour, "-P FORWARD DROP");
    assert!(!driver.observe().intact);
    driver.reconcile(&mappings());
    assert_reached(&lab);
}

/// Connections that exist pass FORWARD although the rules that translated them are gone.
fn rule_stays_while_flushed_mappings_are_missing(backend: Backend) {
    let flavour = iptables_of(backend);
    let lab = docker_host(flavour);
    let mut driver = lab.driver(backend);
    let ipv4 = &mappings()[..2];
    driver.reconcile(ipv4);
    lab.flush(backend);
    assert!(driver.observe().mappings.is_empty());
    assert_eq!(ours(&lab, flavour), 2);
    driver.reconcile(ipv4);
    driver.reconcile(&[]);
    assert_eq!(ours(&lab, flavour), 0);
}

#[test]
fn a_filter_table_that_could_not_be_read_is_read_again() {
    let lab = docker_host(Flavour::Nft);
    lab.iptables(Flavour::Nft, "-P FORWARD ACCEPT");
    let programs = Programs::new(Flavour::Nft);
    let settings = lab::settings_for(range("20000-29999"));
    let opened = lab
        .node
        .run(|| open(Backend::Nftables, &settings, &programs.tools()));
    let mut driver = Driver::new(&lab.node, Box::new(opened.expect("open the driver")));
    driver.reconcile(&mappings());
    lab.iptables(Flavour::Nft, "-P FORWARD DROP");
    programs.replace("iptables-nft-save", "exit 1");
    driver.observe();
    programs.restore_real("iptables-nft-save");
    assert!(!driver.observe().intact, "a closed FORWARD was not seen");
}

fn only_mapped_connections_are_accepted(backend: Backend) {
    let flavour = iptables_of(backend);
    let lab = docker_host(flavour);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    lab.driver(backend).reconcile(&mappings());
    assert_reached(&lab);
    assert!(dropped(&lab, POD1, 9040), "the pod itself is open");
    lab.iptables(
        flavour,
        &format!("-t nat -A PREROUTING -p udp --dport 7000 -j DNAT --to {POD2}:9040"),
    );
    assert!(
        dropped(&lab, NODE, 7000),
        "another program's translation is let through"
    );
}

fn rules_that_drop_before_the_end_stay(backend: Backend) {
    let flavour = iptables_of(backend);
    let lab = docker_host(flavour);
    lab.iptables(flavour, "-A FORWARD -j REJECT");
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    // a rule of ours after it would have no effect; only IPv6 gets one
    assert_eq!(ours(&lab, flavour), 1);
    let observed = driver.observe();
    assert!(observed.intact);
    assert_eq!(observed.obstacles.len(), 1, "{:?}", observed.obstacles);
    // the rule that is there has its effect before a later one that drops
    let command = flavour.to_string().replace("ip", "ip6");
    lab.node.sh(&format!("{command} -w 30 -A FORWARD -j DROP"));
    assert!(driver.observe().intact);
    assert_eq!(ours(&lab, flavour), 1);
}

#[test]
fn a_rule_that_could_not_be_written_is_written_by_a_later_check() {
    let lab = docker_host(Flavour::Nft);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let programs = Programs::new(Flavour::Nft);
    let settings = lab::settings_for(range("20000-29999"));
    let opened = lab
        .node
        .run(|| open(Backend::Nftables, &settings, &programs.tools()));
    let mut driver = Driver::new(&lab.node, Box::new(opened.expect("open the driver")));
    for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        programs.replace(program, "cat > /dev/null; echo locked >&2; exit 4");
    }
    driver.reconcile(&mappings());
    assert_eq!(ours(&lab, Flavour::Nft), 0);
    for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        programs.restore_real(program);
    }
    // no mapping changes any more
    driver.observe();
    assert_eq!(ours(&lab, Flavour::Nft), 2);
    assert_reached(&lab);
}

#[test]
fn a_first_rule_that_drops_everything_closes_its_family() {
    let lab = docker_host(Flavour::Nft);
    let mut driver = lab.driver(Backend::Nftables);
    driver.reconcile(&mappings());
    lab.node.sh("ip6tables-nft -w 30 -I FORWARD -j DROP");
    let [obstacle] = &driver.observe().obstacles[..] else {
        panic!("one obstacle is to be named")
    };
    assert_eq!(
        obstacle.closes,
        Some(portmapping_dataplane::Family::V6),
        "{obstacle:?}"
    );
    assert!(obstacle.text.contains("drops everything"), "{obstacle:?}");
    lab.node.sh("ip6tables-nft -w 30 -D FORWARD -j DROP");
    assert_eq!(driver.observe().obstacles, []);
}

#[test]
fn a_rule_of_nft_whose_condition_iptables_does_not_print_closes_nothing() {
    let lab = docker_host(Flavour::Nft);
    let mut driver = lab.driver(Backend::Nftables);
    lab.node
        .sh("nft insert rule ip filter FORWARD ip saddr { 192.0.2.1, 192.0.2.2 } drop");
    driver.reconcile(&mappings());
    let [obstacle] = &driver.observe().obstacles[..] else {
        panic!("one obstacle is to be named")
    };
    assert_eq!(obstacle.closes, None, "{obstacle:?}");
}

fn policy_of_the_other_kind_of_iptables_is_passed(backend: Backend) {
    let other = match iptables_of(backend) {
        Flavour::Nft => Flavour::Legacy,
        Flavour::Legacy => Flavour::Nft,
    };
    let lab = docker_host(other);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    assert_reached(&lab);
    driver.reconcile(&[]);
    assert_eq!(ours(&lab, other), 0);
}

#[test]
fn a_start_that_is_only_rehearsed_removes_no_rule() {
    let lab = docker_host(Flavour::Nft);
    lab.driver(Backend::Nftables).reconcile(&mappings());
    lab.node.sh("nft delete table inet portmapping");
    let mut rehearsing = lab.driver(Backend::Nftables);
    assert_eq!(
        ours(&lab, Flavour::Nft),
        2,
        "another enforcer may need them"
    );
    rehearsing.observe();
    assert_eq!(ours(&lab, Flavour::Nft), 0);
}
