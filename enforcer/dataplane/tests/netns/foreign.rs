//! Rules, chains, tables and policies of other programs stay unchanged, from the first mapping to
//! the uninstall.

use portmapping_dataplane::Flavour;
use portmapping_shared::Protocol::{Sctp, Tcp, Udp};

use crate::lab::{Backend, Lab, NODE, POD1, POD1_V6, POD2, at, iptables_of, map};
use crate::serve::{ask_tcp, serve};

crate::for_each_backend!(
    everything_foreign_survives_a_whole_life,
    uninstall_leaves_a_bare_node_without_rules,
);

mod iptables {
    use super::{our_jump_wins_over_portmap, uninstall_removes_what_was_edited_by_hand};

    crate::for_each_flavour!(
        uninstall_removes_what_was_edited_by_hand,
        our_jump_wins_over_portmap,
    );
}

/// Rules as CNI portmap, kube-proxy, docker and a firewall make them.
const FOREIGN: &str = r#"*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-DN-0123456789abcdef01234 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:DOCKER - [0:0]
:PORTMAPPINGS-OF-OTHERS - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -j PORTMAPPINGS-OF-OTHERS
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"podnet\" id: \"x\"" -m multiport --dports 20007 -j CNI-DN-0123456789abcdef01234
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 20007 -j RETURN
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
-A PORTMAPPINGS-OF-OTHERS -m comment --comment "portmapping:not-ours -j PORTMAPPING" -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
"#;

/// A table that iptables does not show.
const FOREIGN_TABLE: &str = "table inet firewall {
    set trusted { type ipv4_addr; elements = { 192.0.2.1 }; }
    chain input { type filter hook input priority 10; policy accept; ip saddr @trusted accept; }
}";

fn everything_foreign_survives_a_whole_life(backend: Backend) {
    let lab = Lab::new();
    let restore = format!("{}-restore", iptables_of(backend));
    lab.node.feed(&restore, &[], FOREIGN);
    lab.node
        .feed(&restore.replace("iptables", "ip6tables"), &[], FOREIGN);
    lab.node.feed("nft", &["-f", "-"], FOREIGN_TABLE);
    let before = (lab.rules(backend), table(&lab));
    let mut driver = lab.driver(backend);
    let some = [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Sctp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ];
    driver.reconcile(&some);
    driver.reconcile(&[map(Tcp, 20000, POD2, 9040)]);
    let with_ours = lab.rules(backend);
    for line in before.0.lines() {
        assert!(with_ours.lines().any(|found| found == line), "lost: {line}");
    }
    driver.reconcile(&[]);
    driver.uninstall();
    assert_eq!((lab.rules(backend), table(&lab)), before);
    // a second uninstall finds nothing to do and succeeds
    driver.uninstall();
    assert_eq!((lab.rules(backend), table(&lab)), before);
}

fn uninstall_leaves_a_bare_node_without_rules(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)]);
    driver.uninstall();
    let left = lab.rules(backend);
    let empty = |line: &str| line.starts_with('*') || line == "COMMIT" || line.ends_with(" ACCEPT");
    assert!(left.lines().all(empty), "{left}");
}

fn uninstall_removes_what_was_edited_by_hand(flavour: Flavour) {
    let lab = Lab::new();
    lab.node.feed(&format!("{flavour}-restore"), &[], FOREIGN);
    let before = lab.rules(flavour);
    let mut driver = lab.driver(flavour);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040)]);
    lab.iptables(
        flavour,
        "-t nat -R PREROUTING 1 -s 192.0.2.0/24 -j PORTMAPPING",
    );
    lab.iptables(flavour, "-t nat -I DOCKER -p tcp -g PORTMAPPING-TCP");
    lab.iptables(flavour, "-t nat -N PORTMAPPING-BY-HAND");
    lab.iptables(flavour, "-t nat -A PORTMAPPING-TCP -j PORTMAPPING-BY-HAND");
    driver.uninstall();
    assert_eq!(lab.rules(flavour), before);
}

fn our_jump_wins_over_portmap(flavour: Flavour) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let mut driver = lab.driver(flavour);
    let mappings = [map(Tcp, 20000, POD1, 9040)];
    driver.reconcile(&mappings);
    // portmap inserts its jump in front when its first static host port appears
    lab.iptables(flavour, "-t nat -N CNI-HOSTPORT-DNAT");
    lab.iptables(
        flavour,
        &format!("-t nat -A CNI-HOSTPORT-DNAT -p tcp --dport 20000 -j DNAT --to {POD2}:9040"),
    );
    lab.iptables(
        flavour,
        "-t nat -I PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
    );
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod2")
    );
    // no rule of a pod was missing: the next read moves the jump, and reports no damage
    let observed = driver.observe();
    assert!(observed.intact);
    assert_eq!(observed.mappings, mappings.into());
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
    assert!(
        lab.rules(flavour)
            .contains("-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n")
    );
}

fn table(lab: &Lab) -> String {
    lab.node.sh("nft list table inet firewall")
}
