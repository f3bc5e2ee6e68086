//! One family against a model of the kernel's table that knows what iptables-restore does.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::family::{Family, Flavour};
use super::super::layout::{JUMPS, mapping_rule};
use super::super::notes;
use super::super::rule::Rule;
use super::super::settings::Settings;
use super::super::testing::{any_mapping, any_range, hostile_text, map, old_rule, range};
use super::super::transaction::Transaction;
use super::*;
use crate::exec::Tools;
use portmapping_shared::Protocol;

/// Table nat: chains with their rules. Built-in chains are always there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table(BTreeMap<String, Vec<String>>);

impl Table {
    fn new() -> Self {
        let foreign = vec!["-j KUBE-SERVICES".to_owned()];
        let built_in = JUMPS.map(|jump| (jump.from.to_owned(), foreign.clone()));
        Self(
            built_in
                .into_iter()
                .chain([("KUBE-SERVICES".to_owned(), Vec::new())])
                .collect(),
        )
    }

    /// What iptables-save prints.
    fn text(&self) -> String {
        let declarations = self.0.keys().map(|chain| format!(":{chain} - [0:0]\n"));
        let rules = self.0.iter().flat_map(|(chain, rules)| {
            rules.iter().map(move |rule| format!("-A {chain} {rule}\n"))
        });
        format!(
            "*nat\n{}{}COMMIT\n",
            declarations.collect::<String>(),
            rules.collect::<String>()
        )
    }

    /// What iptables-restore --noflush does; it refuses what the kernel refuses.
    fn restore(&mut self, text: &str) {
        for line in text.lines() {
            let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(chain) = command.strip_prefix(':') {
                self.0.insert(chain.to_owned(), Vec::new());
                continue;
            }
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match command {
                "*nat" | "COMMIT" => {}
                "-A" => self.0.get_mut(chain).unwrap().push(rule.to_owned()),
                "-I" => {
                    let rule = rule.strip_prefix("1 ").unwrap().to_owned();
                    self.0.get_mut(chain).unwrap().insert(0, rule);
                }
                "-D" => {
                    let rules = self.0.get_mut(chain).unwrap();
                    let at = rules.iter().position(|found| found == rule).unwrap();
                    rules.remove(at);
                }
                "-X" => assert_eq!(
                    self.0.remove(chain),
                    Some(Vec::new()),
                    "{chain} is not empty"
                ),
                other => panic!("{other}"),
            }
        }
        let targets = self
            .0
            .values()
            .flatten()
            .filter_map(|rule| Some(Rule::parse(rule)?.target()?.to_owned()));
        for target in targets.filter(|target| super::super::rule::is_our_chain(target)) {
            assert!(
                self.0.contains_key(&target),
                "a jump leads to {target}, which is not there"
            );
        }
    }

    /// What [`Side::apply`] does, on this table.
    fn apply(&mut self, side: &Side, desired: &BTreeSet<Mapping>) -> Known {
        self.apply_by(side, desired, true)
    }

    fn apply_by(&mut self, side: &Side, desired: &BTreeSet<Mapping>, append: bool) -> Known {
        let known = side.read(&self.text());
        let present: BTreeSet<Mapping> = known.leaves.values().flatten().cloned().collect();
        let remove: Vec<&Mapping> = present.difference(desired).collect();
        let create: Vec<&Mapping> = desired.difference(&present).collect();
        let mut known = known;
        let mut missing_jumps = std::mem::take(&mut known.damage.missing_jumps);
        if append {
            // as after the first time
            let gone = missing_jumps.drain(..).map(|jump| (jump, Vec::new()));
            known.damage.misplaced_jumps.extend(gone);
        }
        let (next, transaction) = side.prepare(known, &remove, &create, append);
        for jump in &missing_jumps {
            self.0.entry(jump.to.to_owned()).or_default();
            self.0
                .get_mut(jump.from)
                .unwrap()
                .insert(0, jump.rule.to_owned());
        }
        self.restore(&transaction.text().unwrap_or_default());
        next
    }

    /// Our mappings are exactly these, the frame is whole, and foreign rules are where they were.
    fn assert_is(&self, side: &Side, desired: &BTreeSet<Mapping>) {
        let known = side.read(&self.text());
        let found: BTreeSet<Mapping> = known.leaves.values().flatten().cloned().collect();
        assert_eq!(&found, desired);
        assert_eq!(known.damage, Damage::default());
        for jump in JUMPS {
            assert_eq!(self.0[jump.from], [jump.rule, "-j KUBE-SERVICES"]);
        }
    }
}

fn side(range: portmapping_shared::PortRange) -> Side {
    side_by(range, Flavour::Nft, Hairpin::Compared)
}

fn side_by(range: portmapping_shared::PortRange, flavour: Flavour, hairpin: Hairpin) -> Side {
    let commands = Commands::new(Family::V4, flavour, Tools::default());
    let mut layout = Layout::new(Family::V4, Settings::new(range));
    layout.set_hairpin(hairpin);
    Side::new(commands, layout)
}

fn any_side(range: &'static str) -> impl Strategy<Value = Side> {
    let hairpins = vec![Hairpin::Compared, Hairpin::PerPod];
    (
        prop::sample::select(Flavour::ALL.to_vec()),
        prop::sample::select(hairpins),
    )
        .prop_map(|(flavour, hairpin)| {
            side_by(super::super::testing::range(range), flavour, hairpin)
        })
}

/// Mappings as they are wanted: a port of an address is one pod's.
fn any_desired(most: usize) -> impl Strategy<Value = BTreeSet<Mapping>> {
    prop::collection::vec(any_mapping(Family::V4), 0..most).prop_map(|mappings| {
        let key = |m: &Mapping| (m.protocol, m.host_port, m.host_ip);
        let one_each: BTreeMap<_, _> = mappings.into_iter().map(|m| (key(&m), m)).collect();
        one_each.into_values().collect()
    })
}

fn note(mapping: &Mapping) -> String {
    notes::rules([mapping]).concat()
}

const NOTES: &str = "PORTMAPPING-UID-TCP-20000";

fn some() -> BTreeSet<Mapping> {
    let ports = [20000, 20001, 25000, 19999];
    ports
        .into_iter()
        .map(|port| map(Protocol::Tcp, port, "10.244.1.7", 80))
        .collect()
}

#[test]
fn change_names_only_the_leaf_it_touches() {
    let side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    let (gone, new) = (
        map(Protocol::Tcp, 20001, "10.244.1.7", 80),
        map(Protocol::Tcp, 20002, "10.244.1.7", 80),
    );
    let known = side.read(&table.text());
    let (_, transaction) = side.prepare(known, &[&gone], &[&new], true);
    let leaf = "PORTMAPPING-TCP-20000-20021".to_owned();
    // the note of the gone has a rule together with another's
    let kept = map(Protocol::Tcp, 20000, "10.244.1.7", 80);
    let noted = (NOTES.to_owned(), notes::rules([&kept, &new]));
    let expected = Transaction {
        deleted: vec![(leaf.clone(), mapping_rule(&gone))],
        chains: [noted.clone()].into(),
        appended: vec![(leaf.clone(), mapping_rule(&new))],
        ..Transaction::default()
    };
    assert_eq!(transaction, expected);
    // where it is not certain what is there, the leaf is written anew
    let (_, transaction) = side.prepare(side.read(&table.text()), &[&gone], &[&new], false);
    let expected = Transaction {
        chains: [(leaf, vec![mapping_rule(&kept), mapping_rule(&new)]), noted].into(),
        ..Transaction::default()
    };
    assert_eq!(transaction, expected);
}

#[test]
fn new_mapping_is_appended() {
    for hairpin in [Hairpin::Compared, Hairpin::PerPod] {
        let side = side_by(range("20000-29999"), Flavour::Nft, hairpin);
        let mut table = Table::new();
        table.apply(&side, &some());
        let new = map(Protocol::Tcp, 20002, "10.244.1.8", 80);
        let (known, transaction) = side.prepare(side.read(&table.text()), &[], &[&new], true);
        let pod = (
            "PORTMAPPING-MASQ-8-0".to_owned(),
            "-s 10.244.1.8/32 -d 10.244.1.8/32 -g PORTMAPPING-HAIRPIN".to_owned(),
        );
        let pods = if hairpin == Hairpin::PerPod {
            vec![pod]
        } else {
            vec![]
        };
        let own = [
            (NOTES.to_owned(), note(&new)),
            ("PORTMAPPING-TCP-20000-20021".to_owned(), mapping_rule(&new)),
        ];
        let expected = Transaction {
            appended: [&pods[..], &own[..]].concat(),
            ..Transaction::default()
        };
        assert_eq!(transaction, expected);
        table.restore(&transaction.text().unwrap());
        assert_eq!(side.read(&table.text()).notes, known.notes);
        // its last mapping takes the pod's own rule along
        let (known, transaction) = side.prepare(known, &[&new], &[], true);
        let expected = Transaction {
            deleted: [&own[..], &pods[..]].concat(),
            ..Transaction::default()
        };
        assert_eq!(transaction, expected);
        table.restore(&transaction.text().unwrap());
        assert_eq!(side.read(&table.text()).notes, known.notes);
    }
}

#[test]
fn rule_appended_twice_is_damage() {
    let side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    let new = map(Protocol::Tcp, 20002, "10.244.1.7", 80);
    let (_, transaction) = side.prepare(side.read(&table.text()), &[], &[&new], true);
    for _ in 0..2 {
        table.restore(&transaction.text().unwrap());
    }
    let known = side.read(&table.text());
    assert_eq!(
        known.damage.chains,
        ["PORTMAPPING-TCP-20000-20021", NOTES]
            .map(str::to_owned)
            .into()
    );
    let desired: BTreeSet<Mapping> = some().into_iter().chain([new]).collect();
    table.apply(&side, &desired);
    table.assert_is(&side, &desired);
}

#[test]
fn whole_table_needs_no_transaction() {
    let side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    let known = side.read(&table.text());
    let (next, transaction) = side.prepare(known.clone(), &[], &[], true);
    assert!(transaction.is_empty());
    assert_eq!(next.leaves, known.leaves);
}

#[test]
fn other_protocol_gets_its_tree_when_it_is_needed() {
    let side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    assert!(!table.0.contains_key("PORTMAPPING-UDP"));
    let mut desired = some();
    desired.insert(map(Protocol::Udp, 20000, "10.244.1.7", 80));
    table.apply(&side, &desired);
    table.assert_is(&side, &desired);
    // it stays, so that the next UDP mapping costs one leaf
    table.apply(&side, &some());
    table.assert_is(&side, &some());
    assert!(table.0.contains_key("PORTMAPPING-UDP"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_desired_set_follows_any_other(
        steps in prop::collection::vec(any_desired(12), 1..5),
        append: bool,
        side in any_side("20000-20200"),
    ) {
        let mut table = Table::new();
        for desired in steps {
            let next = table.apply_by(&side, &desired, append);
            table.assert_is(&side, &desired);
            let read = side.read(&table.text());
            prop_assert_eq!((next.leaves, next.pods), (read.leaves, read.pods));
            prop_assert_eq!(next.notes, read.notes);
        }
    }
}

proptest! {
    // trees of tens of thousands of ports
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_range_follows_any_other(
        ranges in prop::collection::vec(any_range(), 1..4),
        desired in any_desired(8),
    ) {
        let mut table = Table::new();
        for range in ranges {
            let side = side(range);
            table.apply(&side, &desired);
            table.assert_is(&side, &desired);
        }
    }
}

mod again;
mod damage;
mod owners;
