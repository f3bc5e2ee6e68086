//! Nodes with ufw or firewalld, as these programs write their rules: mapped ports are reached, or what drops
//! them is named.

use std::time::Duration;

use portmapping_dataplane::Flavour;

use crate::forward::{assert_reached, mappings};
use crate::lab::{Backend, Lab, NODE, NODE_V6, at, iptables_of};
use crate::serve::{UdpClient, serve};

crate::for_each_backend!(
    ports_are_reached_past_ufw,
    ufw_that_rejects_forwarded_packets_is_named,
    ports_are_reached_past_firewalld,
    firewalld_with_strict_forward_ports_is_named,
    rule_for_other_packets_is_no_obstacle,
);

fn assert_dropped(lab: &Lab) {
    for node in [NODE, NODE_V6] {
        let client = UdpClient::new(&lab.client, at(node, 20000));
        let asked = client.ask(Duration::from_millis(300));
        assert!(asked.is_err(), "{node} answers: {asked:?}");
    }
}

/// The filter table of ufw for one family, with its policy for routed packets.
fn ufw(prefix: &str, reject_routed: bool) -> String {
    // neighbours are found by ICMPv6
    let icmp = if prefix == "ufw6" {
        "ipv6-icmp"
    } else {
        "icmp"
    };
    let reject = if reject_routed {
        format!("-A {prefix}-reject-forward -j REJECT\n")
    } else {
        String::new()
    };
    format!(
        r#"*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:{prefix}-before-input - [0:0]
:{prefix}-before-logging-forward - [0:0]
:{prefix}-before-forward - [0:0]
:{prefix}-user-forward - [0:0]
:{prefix}-after-forward - [0:0]
:{prefix}-after-logging-forward - [0:0]
:{prefix}-reject-forward - [0:0]
:{prefix}-track-forward - [0:0]
:{prefix}-skip-to-policy-forward - [0:0]
-A INPUT -j {prefix}-before-input
-A FORWARD -j {prefix}-before-logging-forward
-A FORWARD -j {prefix}-before-forward
-A FORWARD -j {prefix}-after-forward
-A FORWARD -j {prefix}-after-logging-forward
-A FORWARD -j {prefix}-reject-forward
-A FORWARD -j {prefix}-track-forward
-A {prefix}-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {prefix}-before-input -p {icmp} -j ACCEPT
-A {prefix}-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {prefix}-before-forward -j {prefix}-user-forward
-A {prefix}-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A {prefix}-skip-to-policy-forward -j DROP
{reject}COMMIT
"#
    )
}

fn ufw_node(flavour: Flavour, reject_routed: bool) -> Lab {
    let lab = Lab::new();
    let restore = format!("{flavour}-restore");
    lab.node.feed(&restore, &[], &ufw("ufw", reject_routed));
    let restore = restore.replace("iptables", "ip6tables");
    lab.node.feed(&restore, &[], &ufw("ufw6", reject_routed));
    lab
}

fn ports_are_reached_past_ufw(backend: Backend) {
    let lab = ufw_node(iptables_of(backend), false);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    assert_reached(&lab);
    assert_eq!(driver.observe().obstacles, []);
}

fn ufw_that_rejects_forwarded_packets_is_named(backend: Backend) {
    let flavour = iptables_of(backend);
    let lab = ufw_node(flavour, true);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&[]);
    let before = driver.observe().obstacles;
    assert_eq!(before.len(), 2, "known before a pod is mapped: {before:?}");
    driver.reconcile(&mappings());
    assert_dropped(&lab);
    let obstacles = driver.observe().obstacles;
    assert_eq!(obstacles.len(), 2, "{obstacles:?}");
    for obstacle in &obstacles {
        assert!(
            obstacle.text.contains("has a rule that drops"),
            "{obstacle:?}"
        );
        assert_eq!(obstacle.closes, None, "a rule before it may accept some");
    }
    assert!(!lab.rules(flavour).contains("-A FORWARD -m conntrack"));
    // what the text says helps
    for program in [
        flavour.to_string(),
        flavour.to_string().replace("ip", "ip6"),
    ] {
        lab.node.sh(&format!(
            "{program} -w 30 -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"
        ));
    }
    assert_reached(&lab);
}

/// The table of firewalld; with `StrictForwardPorts=yes` it accepts only translations of its own.
fn firewalld(strict: bool) -> String {
    let translated = if strict {
        "jump filter_FORWARD_dnat"
    } else {
        "accept"
    };
    format!(
        "table inet firewalld {{
            chain filter_FORWARD_dnat {{ reject with icmpx type admin-prohibited; }}
            chain filter_FORWARD_dispatch {{ }}
            chain filter_FORWARD {{
                type filter hook forward priority 10; policy accept;
                ct state {{ established, related }} accept
                ct status dnat {translated}
                iifname \"lo\" accept
                ct state {{ invalid }} drop
                jump filter_FORWARD_dispatch
                reject with icmpx type admin-prohibited
            }}
            chain nat_POSTROUTING_dispatch {{ }}
            chain nat_POSTROUTING {{
                type nat hook postrouting priority 110; policy accept;
                jump nat_POSTROUTING_dispatch
            }}
        }}"
    )
}

fn firewalld_node(strict: bool) -> Lab {
    let lab = Lab::new();
    lab.node.feed("nft", &["-f", "-"], &firewalld(strict));
    lab
}

fn ports_are_reached_past_firewalld(backend: Backend) {
    let lab = firewalld_node(false);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    assert_reached(&lab);
    assert_eq!(driver.observe().obstacles, []);
}

fn firewalld_with_strict_forward_ports_is_named(backend: Backend) {
    let lab = firewalld_node(true);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    assert_dropped(&lab);
    let obstacles = driver.observe().obstacles;
    assert_eq!(obstacles.len(), 1, "{obstacles:?}");
    assert!(
        obstacles[0]
            .text
            .contains("chain inet firewalld filter_FORWARD drops"),
        "{obstacles:?}"
    );
    assert_eq!(obstacles[0].closes, None, "its rules may accept some");
    // what the text says helps
    lab.node
        .sh("nft insert rule inet firewalld filter_FORWARD ct status dnat accept");
    assert_reached(&lab);
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    assert_eq!(driver.observe().obstacles, []);
}

fn rule_for_other_packets_is_no_obstacle(backend: Backend) {
    let lab = Lab::new();
    let table = "table inet strict {
        chain forward {
            type filter hook forward priority 10; policy accept;
            ct state { established, related } accept
            ct status & dnat == 0 drop
        }
    }";
    lab.node.feed("nft", &["-f", "-"], table);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&mappings());
    assert_reached(&lab);
    assert_eq!(driver.observe().obstacles, []);
}
