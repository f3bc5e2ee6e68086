//! Tests one family against a model of the kernel's table that does what iptables-restore does.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::layout::JUMPS;
use super::super::rule::{Rule, rule_without_owner};
use super::super::testing::{any_mapping, any_range, hostile_text, map, range};
use super::super::transaction::Transaction;
use super::*;
use crate::exec::Tools;
use crate::family::Family;
use crate::flavour::Flavour;
use portmapping_shared::{PortRange, Protocol};

/// A model of table nat: chains with their rules. Built-in chains always exist.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TableModel(BTreeMap<String, Vec<String>>);

impl TableModel {
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

    fn parse(text: &str) -> Self {
        let mut table = Self(BTreeMap::new());
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().unwrap();
                table.0.insert(chain.to_owned(), Vec::new());
            } else if let Some((chain, rule)) =
                line.strip_prefix("-A ").and_then(|l| l.split_once(' '))
            {
                table.0.get_mut(chain).unwrap().push(rule.to_owned());
            }
        }
        table
    }

    /// Returns what iptables-save prints.
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

    /// Does what iptables-restore --noflush does; panics where the kernel refuses.
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

    /// Returns the table with the rules of each chain sorted.
    fn sorted(&self) -> Self {
        let mut table = self.clone();
        table.0.values_mut().for_each(|rules| rules.sort());
        table
    }

    /// Does what [`FamilyRules::apply`] does, on this table.
    fn apply(&mut self, rules: &FamilyRules, desired: &BTreeSet<Mapping>) -> Known {
        let mut known = rules.parse(&self.text());
        let present: BTreeSet<Mapping> = known.mappings().cloned().collect();
        let remove: Vec<&Mapping> = present.difference(desired).collect();
        let create: Vec<&Mapping> = desired.difference(&present).collect();
        // as after the first change
        let missing_jumps = std::mem::take(&mut known.damage.missing_jumps);
        let gone = missing_jumps.into_iter().map(|jump| (jump, Vec::new()));
        known.damage.misplaced_jumps.extend(gone);
        let (next, transaction) = change::prepare(&rules.layout, known, &remove, &create);
        self.restore(&transaction.text().unwrap_or_default());
        next
    }

    /// Asserts that our mappings are exactly these, the frame is whole, and foreign rules are
    /// unchanged.
    fn assert_is(&self, rules: &FamilyRules, desired: &BTreeSet<Mapping>) {
        let known = rules.parse(&self.text());
        let found: BTreeSet<Mapping> = known.mappings().cloned().collect();
        assert_eq!(&found, desired);
        assert_eq!(known.damage, Damage::default());
        for jump in JUMPS {
            assert_eq!(self.0[jump.from], [jump.rule, "-j KUBE-SERVICES"]);
        }
    }
}

fn rules(range: PortRange) -> FamilyRules {
    let commands = Commands::new(Family::V4, Flavour::Nft, Tools::default());
    FamilyRules::new(commands, Settings::new(range))
}

/// Generates desired mappings: each port of an address belongs to one pod.
fn any_desired(most: usize) -> impl Strategy<Value = BTreeSet<Mapping>> {
    prop::collection::vec(any_mapping(Family::V4), 0..most).prop_map(|mappings| {
        let key = |m: &Mapping| (m.protocol, m.host_port, m.host_ip);
        let one_each: BTreeMap<_, _> = mappings.into_iter().map(|m| (key(&m), m)).collect();
        one_each.into_values().collect()
    })
}

const LEAF: &str = "PORTMAPPING-TCP-0-0";

fn some() -> BTreeSet<Mapping> {
    let ports = [20000, 20001, 25000, 19999];
    ports
        .into_iter()
        .map(|port| map(Protocol::Tcp, port, "10.244.1.7", 80))
        .collect()
}

#[test]
fn new_mapping_is_appended_and_a_leaf_that_loses_one_is_written_again() {
    let rules = rules(range("20000-29999"));
    let mut table = TableModel::new();
    table.apply(&rules, &some());
    let new = map(Protocol::Tcp, 20002, "10.244.1.8", 80);
    let known = rules.parse(&table.text());
    let (known, transaction) = change::prepare(&rules.layout, known, &[], &[&new]);
    let pod = "-s 10.244.1.8/32 -d 10.244.1.8/32 -m comment --comment \"portmapping:8c1f3a52-uid\" -j MASQUERADE";
    let expected = Transaction {
        appended: vec![
            ("PORTMAPPING-MASQ-8".to_owned(), pod.to_owned()),
            (LEAF.to_owned(), rule_without_owner(&new)),
        ],
        ..Transaction::default()
    };
    assert_eq!(transaction, expected);
    table.restore(&transaction.text().unwrap());
    // the rule of a pod is removed with the pod's last mapping
    let (_, transaction) = change::prepare(&rules.layout, known, &[&new], &[]);
    let kept = [20000, 20001].map(|port| map(Protocol::Tcp, port, "10.244.1.7", 80));
    let expected = Transaction {
        chains: [
            (
                LEAF.to_owned(),
                kept.iter().map(rule_without_owner).collect(),
            ),
            ("PORTMAPPING-MASQ-8".to_owned(), Vec::new()),
        ]
        .into(),
        ..Transaction::default()
    };
    assert_eq!(transaction, expected);
    table.restore(&transaction.text().unwrap());
    table.assert_is(&rules, &some());
}

#[test]
fn rule_appended_twice_is_damage() {
    let rules = rules(range("20000-29999"));
    let mut table = TableModel::new();
    table.apply(&rules, &some());
    let new = map(Protocol::Tcp, 20002, "10.244.1.7", 80);
    let known = rules.parse(&table.text());
    let (_, transaction) = change::prepare(&rules.layout, known, &[], &[&new]);
    for _ in 0..2 {
        table.restore(&transaction.text().unwrap());
    }
    let known = rules.parse(&table.text());
    assert_eq!(known.damage.chains, [LEAF.to_owned()].into());
    let desired: BTreeSet<Mapping> = some().into_iter().chain([new]).collect();
    table.apply(&rules, &desired);
    table.assert_is(&rules, &desired);
}

#[test]
fn whole_table_needs_no_transaction() {
    let rules = rules(range("20000-29999"));
    let mut table = TableModel::new();
    table.apply(&rules, &some());
    let known = rules.parse(&table.text());
    let (next, transaction) = change::prepare(&rules.layout, known.clone(), &[], &[]);
    assert!(transaction.is_empty());
    assert_eq!(next.leaves, known.leaves);
}

#[test]
fn rule_that_leads_to_another_pod_is_damage() {
    let mut rules = rules(range("20000-29999"));
    let mut table = TableModel::new();
    table.apply(&rules, &some());
    assert!(rules.take(&table.text()).observed.intact);
    let leaf = table.0.get_mut(LEAF).unwrap();
    leaf[0] = leaf[0].replace("10.244.1.7", "10.244.1.8");
    let Reading {
        observed, altered, ..
    } = rules.take(&table.text());
    assert!(altered && !observed.intact);
    // no rule names a pod there
    assert_eq!(some().difference(&observed.mappings).count(), 1);
    table.apply(&rules, &some());
    table.assert_is(&rules, &some());
}

#[test]
fn rules_whose_pod_names_no_owner_are_no_mappings_and_are_replaced() {
    let rules = rules(range("20000-29999"));
    let mut table = TableModel::new();
    table.apply(&rules, &some());
    let owner = "-m comment --comment \"portmapping:8c1f3a52-uid\" ";
    let whole = table.clone();
    let pods = table.0.get_mut("PORTMAPPING-MASQ-7").unwrap();
    let unnamed = pods[0].replace(owner, "");
    let other = pods[0].replace("8c1f3a52", "another");
    for pods in [vec![], vec![unnamed], vec![pods[0].clone(), other]] {
        table.0.insert("PORTMAPPING-MASQ-7".to_owned(), pods);
        let known = rules.parse(&table.text());
        assert_eq!(known.mappings().count(), 0);
        assert!(known.damage.chains.contains(LEAF));
        table.apply(&rules, &some());
        assert_eq!(table.sorted(), whole.sorted());
    }
    // a rule of another owner names it, also after the pod at the address has changed
    let mut all = some();
    let other = Mapping {
        owner: "another-uid".parse().unwrap(),
        ..map(Protocol::Tcp, 20002, "10.244.1.7", 80)
    };
    all.insert(other.clone());
    table.apply(&rules, &all);
    table.assert_is(&rules, &all);
    let alone = BTreeSet::from([other]);
    table.apply(&rules, &alone);
    table.assert_is(&rules, &alone);
}

#[test]
fn other_protocol_gets_its_chains_when_it_is_needed() {
    let rules = rules(range("20000-29999"));
    let mut table = TableModel::new();
    table.apply(&rules, &some());
    assert!(!table.0.contains_key("PORTMAPPING-UDP"));
    let mut desired = some();
    desired.insert(map(Protocol::Udp, 20000, "10.244.1.7", 80));
    table.apply(&rules, &desired);
    table.assert_is(&rules, &desired);
    // they stay, so that the next UDP mapping costs one rule
    table.apply(&rules, &some());
    table.assert_is(&rules, &some());
    assert!(table.0.contains_key("PORTMAPPING-UDP"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_desired_set_follows_any_other(
        steps in prop::collection::vec(any_desired(12), 1..5),
    ) {
        let rules = rules(range("20000-20200"));
        let mut table = TableModel::new();
        for desired in steps {
            let next = table.apply(&rules, &desired);
            table.assert_is(&rules, &desired);
            let read = rules.parse(&table.text());
            prop_assert_eq!((next.leaves, next.pods), (read.leaves, read.pods));
        }
    }

    #[test]
    fn any_range_follows_any_other(
        ranges in prop::collection::vec(any_range(), 1..4),
        desired in any_desired(8),
    ) {
        let mut table = TableModel::new();
        for range in ranges {
            let rules = rules(range);
            table.apply(&rules, &desired);
            table.assert_is(&rules, &desired);
        }
    }

    #[test]
    fn any_mappings_follow_an_older_layout(
        desired in any_desired(12),
        range in any_range(),
        table in prop::sample::select(OLDER.to_vec()),
    ) {
        let mut table = TableModel::parse(table);
        let rules = rules(range);
        table.apply(&rules, &desired);
        let known = rules.parse(&table.text());
        prop_assert_eq!(known.mappings().cloned().collect::<BTreeSet<_>>(), desired);
        prop_assert_eq!(known.damage, Damage::default());
        prop_assert!(!table.text().contains("-UID-"));
    }
}

/// The rules of snapshots before 0.1.0 in the kernel.
const OLDER: [&str; 2] = [
    include_str!("../../../tests/netns/older/compared.iptables"),
    include_str!("../../../tests/netns/older/per-pod.iptables"),
];

mod damage;
