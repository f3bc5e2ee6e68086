//! The backend is chosen by what works on the node, also where the rules of other programs cannot be
//! printed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use portmapping_dataplane::Backend;
use portmapping_dataplane::Flavour;
use portmapping_dataplane::detect::{Chosen, choose, detect};
use portmapping_dataplane::migration::BackendMigration;
use portmapping_dataplane::snapshot::Snapshot;
use portmapping_dataplane::{Dataplane as _, Tools, uninstall};
use portmapping_shared::Plan;
use portmapping_shared::Protocol::{Tcp, Udp};
use tempfile::TempDir;

use crate::lab::{self, Driver, Lab, NODE, POD1, POD1_V6, POD2, at, map, range, settings_for};
use crate::serve::{ask_tcp, serve};

/// The programs of both kinds, with the capabilities of the enforcer: `NET_ADMIN` alone.
struct Unprivileged(TempDir);

impl Unprivileged {
    fn new() -> Self {
        let programs = Self(tempfile::tempdir().unwrap());
        for family in ["iptables", "ip6tables"] {
            for kind in ["nft", "legacy"] {
                for suffix in ["", "-save", "-restore"] {
                    let name = format!("{family}-{kind}{suffix}");
                    let real = format!(
                        "exec setpriv --bounding-set -all,+net_admin --inh-caps -all,+net_admin \
                         /usr/sbin/{name} \"$@\""
                    );
                    programs.script(&name, &real);
                }
            }
        }
        programs
    }

    fn script(&self, name: &str, script: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    fn tools(&self) -> Tools {
        Tools {
            directory: Some(self.0.path().to_owned()),
            ..lab::tools()
        }
    }
}

fn chosen(lab: &Lab, tools: &Tools) -> Chosen {
    chosen_of(lab, tools, None)
}

/// With the flag `--iptables`.
fn chosen_of(lab: &Lab, tools: &Tools, only: Option<Flavour>) -> Chosen {
    let settings = settings_for(range("20000-29999"));
    lab.node
        .run(|| choose(&Snapshot::read(tools, &settings), &settings, tools, only))
}

#[test]
fn node_without_rules_or_with_those_of_kubernetes_gets_iptables() {
    let lab = Lab::new();
    let tools = lab::tools();
    assert_eq!(chosen(&lab, &tools).backend, Flavour::Nft.into());
    lab.iptables(Flavour::Legacy, "-t mangle -N KUBE-IPTABLES-HINT");
    lab.iptables(Flavour::Nft, "-A INPUT -s 192.0.2.1 -j ACCEPT");
    let before = lab.rules(Flavour::Legacy);
    let chosen = chosen(&lab, &tools);
    assert_eq!(chosen.backend, Flavour::Legacy.into(), "{}", chosen.reason);
    assert!(chosen.reason.contains("1 rules"), "{}", chosen.reason);
    assert!(
        !lab.rules(Flavour::Legacy).contains("PORTMAPPING"),
        "{before}"
    );
}

#[test]
fn rule_with_an_ipset_moves_the_node_to_nftables_with_all_mappings() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let programs = Unprivileged::new();
    let tools = programs.tools();
    let mappings = [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
        map(Tcp, 20001, POD2, 9040),
    ];
    lab.driver(Flavour::Nft).reconcile(&mappings);
    assert_eq!(chosen(&lab, &tools).backend, Flavour::Nft.into());
    lab.node.sh("ipset create pods hash:net");
    let set = "-t nat -I POSTROUTING -m set --match-set pods src -j RETURN";
    lab.iptables(Flavour::Nft, set);
    let snapshot = lab.node.run(|| lab::snapshot(&tools));
    let error = detect(&snapshot).unwrap_err().to_string();
    assert!(error.contains("-A POSTROUTING -m set"), "{error}");
    assert!(error.contains("overlays/legacy-iptables"), "{error}");
    let chosen = chosen(&lab, &tools);
    assert_eq!(chosen.backend, Backend::Nftables, "{}", chosen.reason);
    assert!(chosen.reason.contains("-m set"), "{}", chosen.reason);
    let settings = settings_for(range("20000-29999"));
    let moved = lab.node.run(|| {
        let opened = BackendMigration::open(chosen.backend, &settings, tools, snapshot);
        let (mut driver, _) = opened.unwrap();
        let found = driver.in_other_backends().clone();
        let plan = Plan::new(&found, &driver.observe().unwrap().mappings);
        driver.apply(&plan).unwrap();
        assert!(driver.observe().unwrap().intact);
        found
    });
    assert_eq!(moved, mappings.into());
    let left = lab.rules(Flavour::Nft);
    assert!(!left.contains("PORTMAPPING"), "{left}");
    assert!(left.contains("--match-set pods"), "{left}");
    for (port, pod) in [(20000, "pod1"), (20001, "pod2")] {
        let answer = ask_tcp(&lab.client, at(NODE, port)).unwrap();
        assert!(answer.starts_with(pod), "{answer}");
    }
}

#[test]
fn table_with_rules_of_nft_moves_the_node_to_nftables() {
    let lab = Lab::new();
    let programs = Unprivileged::new();
    lab.iptables(Flavour::Nft, "-t nat -A PREROUTING -s 192.0.2.1 -j ACCEPT");
    lab.node
        .sh("nft add rule ip nat PREROUTING ip daddr 192.0.2.1 numgen random mod 2 0 accept");
    let chosen = chosen(&lab, &programs.tools());
    assert_eq!(chosen.backend, Backend::Nftables, "{}", chosen.reason);
    assert!(chosen.reason.contains("table nat"), "{}", chosen.reason);
    // also where a flag names the kind of iptables
    let named = chosen_of(&lab, &programs.tools(), Some(Flavour::Nft));
    assert_eq!(named.backend, Backend::Nftables, "{}", named.reason);
    assert!(named.reason.contains("table nat"), "{}", named.reason);
}

#[test]
fn rule_with_an_ipset_in_table_filter_moves_the_node_to_nftables() {
    let lab = Lab::new();
    let programs = Unprivileged::new();
    lab.node.sh("ipset create pods hash:net");
    let set = "-A FORWARD -m set --match-set pods src -j ACCEPT";
    lab.iptables(Flavour::Nft, set);
    let chosen = chosen(&lab, &programs.tools());
    assert_eq!(chosen.backend, Backend::Nftables, "{}", chosen.reason);
    assert!(chosen.reason.contains("-A FORWARD"), "{}", chosen.reason);
}

#[test]
fn rules_of_both_kinds_without_those_of_kubernetes_move_the_node_to_nftables() {
    let lab = Lab::new();
    for kind in Flavour::ALL {
        lab.iptables(kind, "-A INPUT -s 192.0.2.1 -j ACCEPT");
    }
    let chosen = chosen(&lab, &lab::tools());
    assert_eq!(chosen.backend, Backend::Nftables, "{}", chosen.reason);
    assert!(chosen.reason.contains("both"), "{}", chosen.reason);
}

#[test]
fn legacy_tables_that_cannot_be_read_move_the_node_to_nftables() {
    let lab = Lab::new();
    let programs = Unprivileged::new();
    lab.iptables(Flavour::Legacy, "-t mangle -N KUBE-IPTABLES-HINT");
    let chosen = chosen(&lab, &programs.tools());
    assert_eq!(chosen.backend, Backend::Nftables, "{}", chosen.reason);
    assert!(
        chosen.reason.contains("iptables-legacy"),
        "{}",
        chosen.reason
    );
}

#[test]
fn forward_of_a_kind_that_cannot_be_read_is_named_only_where_it_may_drop() {
    let lab = Lab::new();
    let tools = Unprivileged::new();
    let tools = tools.tools();
    let settings = settings_for(range("20000-29999"));
    let obstacles = || {
        let opened = lab::open(Backend::Nftables, &settings, &tools);
        opened.unwrap().observe().unwrap().obstacles
    };
    // its tables are read as root only, and nothing else says what is in them
    lab.iptables(Flavour::Legacy, "-N KUBE-FORWARD");
    let found = lab.node.run(obstacles);
    let [legacy] = &found[..] else {
        panic!("one obstacle is to be named, not {found:?}")
    };
    let text = &legacy.text;
    assert!(text.contains("iptables-legacy (IPv4) may drop"), "{text}");
    assert_eq!(legacy.closes, None);
    // the kernel tells the policy of the other kind, and that it has no FORWARD
    lab.iptables(Flavour::Legacy, "-X KUBE-FORWARD");
    lab.node.sh("nft add table ip6 filter; nft 'add chain ip6 filter pods'; nft 'add rule ip6 filter pods meta mark set jhash ip6 saddr mod 2'");
    let found = lab.node.run(obstacles);
    assert!(
        !found.iter().any(|it| it.text.contains("(IPv6)")),
        "{found:?}"
    );
}

#[test]
fn forward_that_cannot_be_printed_is_named_where_its_policy_drops_and_counts_as_open() {
    let lab = Lab::new();
    let programs = Unprivileged::new();
    let settings = settings_for(range("20000-29999"));
    let both = |args: &str| {
        for (program, set) in [("iptables-nft", "pods4"), ("ip6tables-nft", "pods6")] {
            let args = args.replace("SET", set);
            lab.node.sh(&format!("{program} -w 30 {args}"));
        }
    };
    lab.node
        .sh("ipset create pods4 hash:net; ipset create pods6 hash:net family inet6");
    let unprintable = "-A FORWARD -m set --match-set SET src -j ACCEPT";
    both(unprintable);
    both("-P FORWARD DROP");
    let opened = lab
        .node
        .run(|| lab::open(Backend::Nftables, &settings, &programs.tools()));
    let mut driver = Driver::new(&lab.node, Box::new(opened.unwrap()));
    let [v4, v6] = &driver.observe().obstacles[..] else {
        panic!("one obstacle per family is to be named")
    };
    for (obstacle, family) in [(v4, "IPv4"), (v6, "IPv6")] {
        let text = &obstacle.text;
        let policy = format!("FORWARD of iptables-nft ({family}) drops by default");
        assert!(text.starts_with(&policy), "{text}");
        assert!(text.contains("cannot be read"), "{text}");
        assert!(text.contains("-A FORWARD -m set"), "{text}");
        assert!(
            text.contains("accept translated connections (ctstate DNAT)"),
            "{text}"
        );
        // its rules may accept mapped pods
        assert_eq!(obstacle.closes, None, "{text}");
    }
    // a rule of ours could not be found again there
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)]);
    let rules = lab.rules(Flavour::Nft);
    assert!(!rules.contains("-A FORWARD -m conntrack"), "{rules}");
    for (program, named) in [("ip6tables-nft", 1), ("iptables-nft", 0)] {
        lab.node.sh(&format!("{program} -w 30 -P FORWARD ACCEPT"));
        assert_eq!(driver.observe().obstacles.len(), named, "{program}");
    }
    // as soon as it can be printed, it gets our rule
    both("-P FORWARD DROP");
    both("-F FORWARD");
    let observed = driver.observe();
    assert_eq!(observed.obstacles, []);
    assert!(!observed.intact, "a closed FORWARD was not seen");
    // what was read before says nothing once it cannot be printed again
    both("-A FORWARD -j DROP");
    let closed = driver.observe().obstacles;
    assert!(closed.iter().all(|it| it.closes.is_some()), "{closed:?}");
    both(unprintable);
    let unknown = driver.observe().obstacles;
    assert_eq!((closed.len(), unknown.len()), (2, 2), "{unknown:?}");
    assert!(unknown.iter().all(|it| it.closes.is_none()), "{unknown:?}");
    // nor does it get our rule then
    both("-F FORWARD");
    assert!(!driver.observe().intact);
    both(unprintable);
    driver.reconcile(&[map(Tcp, 20001, POD1, 9040), map(Tcp, 20001, POD1_V6, 9040)]);
    let rules = lab.rules(Flavour::Nft);
    assert!(!rules.contains("-A FORWARD -m conntrack"), "{rules}");
}

#[test]
fn uninstall_finds_our_rule_beside_a_chain_that_cannot_be_printed() {
    let lab = Lab::new();
    lab.iptables(Flavour::Nft, "-P FORWARD DROP");
    lab.driver(Flavour::Nft)
        .reconcile(&[map(Tcp, 20000, POD1, 9040)]);
    let rules = || lab.rules(Flavour::Nft);
    assert!(rules().contains("-A FORWARD -m conntrack"), "{}", rules());
    lab.node.sh("ipset create pods hash:net");
    let set = "-t filter -I INPUT -m set --match-set pods src -j RETURN";
    lab.iptables(Flavour::Nft, set);
    let tools = Unprivileged::new();
    lab.node.run(|| uninstall(&tools.tools())).unwrap();
    let left = rules();
    assert!(!left.contains("-A FORWARD"), "{left}");
    assert!(left.contains("--match-set pods"), "{left}");
}

#[test]
fn kernel_that_refuses_our_rules_moves_the_node_to_nftables() {
    let lab = Lab::new();
    let programs = Unprivileged::new();
    programs.script(
        "iptables-nft-restore",
        "cat > /dev/null; echo 'line 4: RULE_APPEND failed (No such file or directory)' >&2; exit 4",
    );
    let chosen = chosen(&lab, &programs.tools());
    assert_eq!(chosen.backend, Backend::Nftables, "{}", chosen.reason);
    assert!(
        chosen.reason.contains("RULE_APPEND failed"),
        "{}",
        chosen.reason
    );
}

#[test]
fn program_that_is_killed_is_distinguished_from_one_that_fails() {
    let lab = Lab::new();
    let interrupted = |programs: &Unprivileged| {
        let tools = programs.tools();
        let snapshot = lab.node.run(|| lab::snapshot(&tools));
        snapshot.interrupted().map(ToString::to_string)
    };
    let programs = Unprivileged::new();
    assert_eq!(interrupted(&programs), None);
    programs.script("ip6tables-nft-save", "echo 'a reason' >&2; exit 3");
    assert_eq!(interrupted(&programs), None);
    // as by a node without memory
    programs.script("ip6tables-nft-save", "kill -9 $$");
    let error = interrupted(&programs).expect("an error");
    assert!(
        error.starts_with("ip6tables-nft-save failed (signal: 9"),
        "{error}"
    );
}

#[test]
fn node_without_iptables_gets_nftables() {
    let lab = Lab::new();
    let empty = tempfile::tempdir().unwrap();
    let tools = Tools {
        directory: Some(empty.path().to_owned()),
        ..lab::tools()
    };
    let chosen = chosen(&lab, &tools);
    assert_eq!(chosen.backend, Backend::Nftables);
    assert!(
        chosen.reason.contains("is not installed"),
        "{}",
        chosen.reason
    );
}

#[test]
fn backend_that_has_our_rules_stays() {
    let mapping = [map(Tcp, 20000, POD1, 9040)];
    let tools = lab::tools();
    for backend in Backend::ALL {
        let lab = Lab::new();
        lab.driver(backend).reconcile(&mapping);
        // without ours, the node would get another one
        let other = match backend {
            Backend::Iptables(Flavour::Nft) => Flavour::Legacy,
            _ => Flavour::Nft,
        };
        lab.iptables(other, "-t mangle -N KUBE-IPTABLES-HINT");
        assert_eq!(chosen(&lab, &tools).backend, backend);
    }
}
