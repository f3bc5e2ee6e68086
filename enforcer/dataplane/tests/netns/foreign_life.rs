//! The whole life of 500 pods on a node with rules of many other programs. Afterwards no foreign
//! rule has changed.

use std::collections::BTreeSet;

use portmapping_shared::Protocol::{Tcp, Udp};
use portmapping_shared::{Mapping, Plan};

use crate::lab::{Backend, Driver, Lab, iptables_of, map};

crate::for_each_backend!(five_hundred_pods_leave_no_trace);

/// The rules of kube-proxy (by its mode), the kubelet and CNI portmap on a node of the end-to-end
/// tests with a dual-stack Service of type `NodePort` and a static hostPort. The rule that needs an
/// nfacct object is left out.
const IPTABLES: [&str; 2] = [
    include_str!("foreign/kube-proxy.iptables"),
    include_str!("foreign/kube-proxy.ip6tables"),
];
const NFTABLES: &str = include_str!("foreign/kube-proxy.nft");

/// Docker's chains, and a firewall that drops by default in both places.
const DOCKER: &str = "*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
";
const FIREWALL: &str = "table inet firewall {
    set trusted { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }
    map verdicts { type inet_service : verdict; elements = { 22 : accept, 20007 : drop }; }
    chain input { type filter hook input priority 10; policy drop; ip saddr @trusted accept; tcp dport vmap @verdicts; }
    chain forward { type filter hook forward priority 10; policy drop; ct status dnat accept; }
}
table bridge quiet {
    chain forward { type filter hook forward priority 0; policy accept; }
}";

const PODS: u16 = 500;
const BATCH: usize = 100;

struct Foreign {
    lab: Lab,
    backend: Backend,
}

impl Foreign {
    fn new(backend: Backend) -> Self {
        let lab = Lab::new();
        let flavour = iptables_of(backend).to_string();
        let families = [flavour.clone(), flavour.replace("iptables", "ip6tables")];
        for (family, kube_proxy) in families.iter().zip(IPTABLES) {
            let restore = format!("{family}-restore");
            lab.node.feed(&restore, &[], kube_proxy);
            lab.node.feed(&restore, &["--noflush"], DOCKER);
        }
        lab.node.feed("nft", &["-f", "-"], NFTABLES);
        lab.node.feed("nft", &["-f", "-"], FIREWALL);
        Self { lab, backend }
    }

    /// Returns every rule, chain, set, element and policy of the node, without counters.
    fn everything(&self) -> Vec<String> {
        let tables = ["nft", "legacy"].map(|kind| {
            self.lab
                .node
                .sh(&format!("iptables-{kind}-save; ip6tables-{kind}-save"))
        });
        let stable = |line: &str| {
            let chain = line.split_once(" [").filter(|_| line.starts_with(':'));
            chain.map_or(line, |(chain, _)| chain).to_owned()
        };
        let tables = tables.iter().flat_map(|text| text.lines());
        let mut all: Vec<String> = tables
            .filter(|line| !line.starts_with('#'))
            .map(stable)
            .collect();
        let ruleset = self.lab.node.sh("nft --stateless list ruleset");
        all.extend(ruleset.lines().map(str::to_owned));
        all
    }

    /// Returns the same without our own rules.
    fn all_but_ours(&self) -> Vec<String> {
        let mut all = self.everything();
        let ruleset = all.iter().position(|line| line.starts_with("table "));
        // tables of iptables that also contain our rules are in the listing of iptables
        let rest = all.split_off(ruleset.expect("nft lists tables"));
        all.retain(|line| !line.contains("PORTMAPPING") && !line.contains("portmapping"));
        let mut ours = false;
        all.extend(rest.into_iter().filter(|line| {
            if line.starts_with("table ") {
                let shared = ["ip", "ip6"].iter().any(|family| {
                    ["nat", "filter", "mangle", "raw"]
                        .iter()
                        .any(|name| *line == format!("table {family} {name} {{"))
                });
                ours = shared || line.contains("portmapping");
            }
            !ours && !line.starts_with("# Warning")
        }));
        all
    }

    fn damage(&self, round: usize) {
        match self.backend {
            Backend::Iptables(flavour) => {
                let damage = [
                    "-F PORTMAPPING-TCP-0-0",
                    "-D PREROUTING 1",
                    "-F PORTMAPPING",
                ];
                self.lab
                    .iptables(flavour, &format!("-t nat {}", damage[round % 3]));
            }
            Backend::Nftables => {
                let damage = [
                    "flush map inet portmapping ports4",
                    "flush chain inet portmapping prerouting",
                    "delete table inet portmapping",
                ];
                self.lab.node.sh(&format!("nft {}", damage[round % 3]));
            }
        }
    }
}

/// Returns the mappings of a pod's two ports; every fifth pod has IPv6 too. In its second life, a
/// pod has another address.
fn mappings(pod: u16, life: u16) -> Vec<Mapping> {
    let (third, fourth) = (100 * life + pod / 250, pod % 250 + 2);
    let v4 = format!("10.88.{third}.{fourth}");
    let v6 = format!("fd88::{third}:{fourth}");
    let (first, second) = (20000 + 2 * pod, 20001 + 2 * pod);
    let mut all = vec![map(Tcp, first, &v4, 9040), map(Udp, second, &v4, 9041)];
    if pod.is_multiple_of(5) {
        all.extend([map(Tcp, first, &v6, 9040), map(Udp, second, &v6, 9041)]);
    }
    all
}

fn five_hundred_pods_leave_no_trace(backend: Backend) {
    let foreign = Foreign::new(backend);
    let before = foreign.everything();
    assert!(before.iter().any(|line| line.contains("KUBE-SEP-")));
    let foreign_parts = foreign.all_but_ours();
    let mut driver = foreign.lab.driver(backend);
    // the enforcer does the same when it starts
    driver.observe();
    let mut desired = BTreeSet::new();
    let pods: Vec<u16> = (0..PODS).collect();
    let batches = || pods.chunks(BATCH).enumerate();
    let check = |driver: &mut Driver<'_>, desired: &BTreeSet<Mapping>, when: &str| {
        driver.assert_is(desired);
        assert_same(&foreign.all_but_ours(), &foreign_parts, when);
    };
    for (_, batch) in batches() {
        let created: Vec<Mapping> = batch.iter().flat_map(|pod| mappings(*pod, 0)).collect();
        driver.create(&created);
        desired.extend(created);
    }
    check(&mut driver, &desired, "created");
    for (round, batch) in batches() {
        let to_remove: Vec<Mapping> = batch.iter().flat_map(|pod| mappings(*pod, 0)).collect();
        let to_create: Vec<Mapping> = batch.iter().flat_map(|pod| mappings(*pod, 1)).collect();
        desired.retain(|mapping| !to_remove.contains(mapping));
        desired.extend(to_create.iter().cloned());
        driver
            .try_apply(&Plan {
                to_remove,
                to_create,
                ..Plan::default()
            })
            .expect("change");
        if round < 3 {
            foreign.damage(round);
            let all: Vec<Mapping> = desired.iter().cloned().collect();
            driver.repair(&all);
            check(&mut driver, &desired, "damaged and repaired");
        }
    }
    check(&mut driver, &desired, "changed");
    for (_, batch) in batches() {
        let removed: Vec<Mapping> = batch.iter().flat_map(|pod| mappings(*pod, 1)).collect();
        driver.remove(&removed);
    }
    check(&mut driver, &BTreeSet::new(), "deleted");
    driver.uninstall();
    assert_same(&foreign.everything(), &before, "uninstalled");
}

fn assert_same(now: &[String], before: &[String], when: &str) {
    let lost: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
    let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
    assert!(
        lost.is_empty() && new.is_empty(),
        "{when}: lost {lost:#?}, and new are {new:#?}"
    );
    assert_eq!(now, before, "{when}: in another order");
}
