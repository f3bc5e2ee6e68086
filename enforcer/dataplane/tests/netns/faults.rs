//! If programs are missing, fail, hang or wait for a lock, there is an error and no partial change.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use portmapping_dataplane::Flavour;
use portmapping_dataplane::{Dataplane as _, DataplaneError, ExecError};
use portmapping_shared::Protocol::{Sctp, Tcp, Udp};
use portmapping_shared::{Mapping, Plan};

use crate::lab::{Lab, NODE, POD1, POD1_V6, at, map, patience};
use crate::programs::Programs;
use crate::serve::{ask_tcp, serve};

crate::for_each_flavour!(
    error_output_is_reported,
    hung_program_is_killed,
    ipv4_alone_without_ip6tables,
    program_killed_midway_applies_all_or_nothing,
    refused_sctp_is_explained,
);

/// Returns a node with a foreign rule. On a node without rules, iptables-nft would leave empty
/// built-in chains behind.
fn lab(flavour: Flavour) -> Lab {
    let lab = Lab::new();
    lab.iptables(flavour, "-t nat -A PREROUTING -s 192.0.2.1 -j ACCEPT");
    lab.iptables(flavour, "-t nat -A OUTPUT -s 192.0.2.1 -j ACCEPT");
    lab.iptables(flavour, "-t nat -A POSTROUTING -s 192.0.2.1 -j ACCEPT");
    lab
}

fn create(mappings: &[Mapping]) -> Plan {
    Plan {
        to_create: mappings.to_vec(),
        ..Plan::default()
    }
}

fn error_output_is_reported(flavour: Flavour) {
    let lab = lab(flavour);
    let programs = Programs::new(flavour);
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    let before = lab.rules(flavour);
    let restore = format!("{flavour}-restore");
    programs.replace(
        &restore,
        "cat >/dev/null; echo 'iptables-restore: line 3 failed' >&2; exit 1",
    );
    let plan = create(&[map(Tcp, 20000, POD1, 9040), map(Udp, 20000, POD1, 9040)]);
    let error = lab
        .node
        .run(|| driver.apply(&plan))
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 3 failed"), "{error}");
    assert!(error.contains("line was 3: \":PORTMAPPING-"), "{error}");
    assert_eq!(lab.rules(flavour), before, "something was half done");
    // the program works again, and the driver too
    programs.restore_real(&restore);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    lab.node.run(|| driver.apply(&plan)).unwrap();
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
}

/// iptables-legacy does not say what it lacks.
#[test]
fn missing_right_is_distinguished_from_other_errors() {
    let flavour = Flavour::Nft;
    let lab = lab(flavour);
    let programs = Programs::new(flavour);
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    let restore = format!("{flavour}-restore");
    programs.replace(
        &restore,
        &format!("exec setpriv --bounding-set -all --inh-caps -all /usr/sbin/{restore} \"$@\""),
    );
    let plan = create(&[map(Tcp, 20000, POD1, 9040)]);
    let error = lab.node.run(|| driver.apply(&plan)).unwrap_err();
    assert!(error.is_not_permitted(), "{error}");
    assert!(error.to_string().contains("NET_ADMIN"), "{error}");
    programs.replace(&restore, "cat >/dev/null; echo 'line 3 failed' >&2; exit 1");
    let error = lab.node.run(|| driver.apply(&plan)).unwrap_err();
    assert!(!error.is_not_permitted(), "{error}");
}

fn hung_program_is_killed(flavour: Flavour) {
    let lab = lab(flavour);
    let mut programs = Programs::new(flavour);
    programs.deadline = patience(Duration::from_secs(2));
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    let before = lab.rules(flavour);
    programs.replace(
        &format!("{flavour}-restore"),
        "echo thinking >&2; exec sleep 6000",
    );
    let start = Instant::now();
    let plan = create(&[map(Tcp, 20000, POD1, 9040)]);
    let error = lab.node.run(|| driver.apply(&plan)).unwrap_err();
    assert!(start.elapsed() < patience(Duration::from_secs(20)));
    assert!(
        matches!(error, DataplaneError::Exec(ExecError::Deadline { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("thinking"), "{error}");
    assert_eq!(lab.rules(flavour), before, "something was half done");
}

fn program_killed_midway_applies_all_or_nothing(flavour: Flavour) {
    let lab = lab(flavour);
    let programs = Programs::new(flavour);
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    let restore = format!("{flavour}-restore");
    let before = lab.rules(flavour);
    let mappings: Vec<Mapping> = (20000..22000)
        .map(|port| map(Tcp, port, POD1, 9040))
        .collect();
    let mut unchanged = 0;
    for delay in ["0.000", "0.010", "0.020", "0.040", "0.080"] {
        programs.replace(
            &restore,
            &format!(
                "exec 3<&0; /usr/sbin/{restore} \"$@\" <&3 & pid=$!; sleep {delay}; \
                 kill -9 $pid; wait $pid; echo killed >&2; exit 1"
            ),
        );
        // if the kill comes too late, the whole change is made
        if let Err(error) = lab.node.run(|| driver.apply(&create(&mappings))) {
            let error = error.to_string();
            assert!(error.contains("killed"), "{error}");
        }
        let seen = lab.node.run(|| driver.observe()).unwrap().mappings.len();
        assert!(
            [0, mappings.len()].contains(&seen),
            "{seen} mappings are there"
        );
        unchanged += usize::from(lab.rules(flavour) == before);
    }
    assert!(unchanged > 0, "no kill came before the end");
    programs.restore_real(&restore);
    let observed = lab.node.run(|| driver.observe()).unwrap();
    let desired = mappings.iter().cloned().collect();
    let plan = Plan::new(&desired, &observed.mappings);
    lab.node.run(|| driver.apply(&plan)).unwrap();
    let observed = lab.node.run(|| driver.observe()).unwrap();
    assert_eq!(observed.mappings, desired);
    assert!(observed.intact);
}

fn refused_sctp_is_explained(flavour: Flavour) {
    let lab = lab(flavour);
    let programs = Programs::new(flavour);
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    programs.replace(
        &format!("{flavour}-restore"),
        "n=$(grep -n -e '-p sctp' | tail -n 1 | cut -d: -f1)
         echo \"iptables-restore: line $n failed: No such file or directory\" >&2; exit 1",
    );
    let plan = create(&[map(Sctp, 20000, POD1, 9040)]);
    let error = lab
        .node
        .run(|| driver.apply(&plan))
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not translate SCTP"), "{error}");
}

fn ipv4_alone_without_ip6tables(flavour: Flavour) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let programs = Programs::new(flavour);
    programs.remove(&format!("{flavour}-save").replace("iptables", "ip6tables"));
    let mut driver = lab.node.run(|| programs.open(flavour)).unwrap();
    let both = create(&[map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)]);
    let error = lab.node.run(|| driver.apply(&both)).unwrap_err();
    assert!(matches!(error, DataplaneError::NoIpv6 { .. }), "{error}");
    assert!(error.to_string().contains("not installed"), "{error}");
    // IPv4 works without IPv6
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
    assert!(lab.node.run(|| driver.observe()).unwrap().intact);
}

#[test]
fn says_what_is_not_installed() {
    let lab = Lab::new();
    let programs = Programs::new(Flavour::Nft);
    programs.remove("iptables-nft-save");
    let error = lab
        .node
        .run(|| programs.open(Flavour::Nft))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "iptables-nft-save is not installed (or not on PATH)");
}

#[test]
fn says_which_program_is_of_another_version() {
    let lab = Lab::new();
    let programs = Programs::new(Flavour::Nft);
    programs.replace(
        "iptables-nft-save",
        "echo \"iptables-save: unrecognized option '-t'\" >&2; exit 2",
    );
    let error = lab
        .node
        .run(|| programs.open(Flavour::Nft))
        .unwrap_err()
        .to_string();
    assert!(error.contains("iptables-nft-save failed"), "{error}");
    assert!(error.contains("unrecognized option"), "{error}");
}

/// Uses a separate lock file for iptables-legacy, so that no other test waits.
#[test]
fn legacy_lock_held_for_long_is_reported_and_waited_for() {
    let lab = lab(Flavour::Legacy);
    let programs = Programs::new(Flavour::Legacy);
    let path = programs.directory.path().join("lock");
    programs.replace(
        "iptables-legacy-restore",
        &format!(
            "XTABLES_LOCKFILE={} exec /usr/sbin/iptables-legacy-restore \"$@\"",
            path.display()
        ),
    );
    let mut driver = lab.node.run(|| programs.open(Flavour::Legacy)).unwrap();
    let before = lab.rules(Flavour::Legacy);
    let lock = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive).unwrap();
    let holder = std::thread::spawn(move || {
        std::thread::sleep(patience(Duration::from_secs(10)));
        drop(lock);
    });
    let plan = create(&[map(Tcp, 20000, POD1, 9040)]);
    let mut refusals = 0;
    while let Err(error) = lab.node.run(|| driver.apply(&plan)) {
        let error = error.to_string();
        assert!(error.contains("xtables lock"), "{error}");
        assert_eq!(
            lab.rules(Flavour::Legacy),
            before,
            "something was half done"
        );
        refusals += 1;
    }
    assert!(refusals > 0, "the lock was not waited for");
    holder.join().unwrap();
    let observed = lab.node.run(|| driver.observe()).unwrap();
    assert_eq!(observed.mappings, plan.to_create.iter().cloned().collect());
}

/// The unchanged generation of `nf_tables` shows that no rule has changed.
#[test]
fn unchanged_rules_are_not_read_again() {
    let lab = lab(Flavour::Nft);
    let programs = Programs::new(Flavour::Nft);
    let mut driver = lab.node.run(|| programs.open(Flavour::Nft)).unwrap();
    let plan = create(&[map(Tcp, 20000, POD1, 9040)]);
    lab.node.run(|| driver.apply(&plan)).unwrap();
    let seen = lab.node.run(|| driver.observe()).unwrap();
    assert_eq!(seen.mappings.len(), 1);
    for save in ["iptables-nft-save", "ip6tables-nft-save"] {
        programs.replace(save, "exit 1");
    }
    assert_eq!(lab.node.run(|| driver.observe()).unwrap(), seen);
    lab.iptables(Flavour::Nft, "-t nat -N OTHER");
    lab.node.run(|| driver.observe()).unwrap_err();
}
