//! Whose mappings are, and tables as older versions and other kernels have them.

use super::*;

#[test]
fn note_of_a_port_is_replaced_with_its_owner() {
    let side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    let old = map(Protocol::Tcp, 20001, "10.244.1.7", 80);
    let new = Mapping {
        owner: "of-another".parse().unwrap(),
        pod_ip: "10.244.1.8".parse().unwrap(),
        ..old.clone()
    };
    // the old note has a rule together with another's
    let without: BTreeSet<Mapping> = some().into_iter().filter(|m| *m != old).collect();
    table.apply(&side, &without);
    table.assert_is(&side, &without);
    assert!(!table.text().contains("20001="));
    // and may be there without its mapping
    let stale = note(&old);
    table.0.get_mut(NOTES).unwrap().push(stale);
    table.assert_is(&side, &without);
    let desired: BTreeSet<Mapping> = without.iter().cloned().chain([new]).collect();
    table.apply(&side, &desired);
    table.assert_is(&side, &desired);
    assert!(!table.text().contains("20001=8c1f3a52-uid"));
    table.apply(&side, &some());
    table.assert_is(&side, &some());
}

#[test]
fn rule_is_nobodys_where_its_note_is_gone_or_doubted() {
    let side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    let doubt = "-m comment --comment \"portmapping:20000=of-another\"".to_owned();
    for (rules, lost) in [
        (vec![], 2),
        (vec!["-j ACCEPT".to_owned()], 2),
        ([table.0[NOTES].clone(), vec![doubt]].concat(), 1),
    ] {
        let mut damaged = table.clone();
        damaged.0.insert(NOTES.to_owned(), rules);
        let known = side.read(&damaged.text());
        let found: BTreeSet<Mapping> = known.leaves.values().flatten().cloned().collect();
        assert_eq!(found.len(), some().len() - lost);
        assert!(found.is_subset(&some()));
        assert!(known.damage.chains.contains("PORTMAPPING-TCP-20000-20021"));
        damaged.apply(&side, &some());
        damaged.assert_is(&side, &some());
    }
    // and without its rule a note is nothing
    table
        .0
        .insert("PORTMAPPING-TCP-20000-20021".to_owned(), Vec::new());
    let known = side.read(&table.text());
    assert_eq!(known.leaves.values().flatten().count(), some().len() - 2);
    assert_eq!(known.damage, Damage::default());
}

#[test]
fn note_that_names_another_ends_the_rule() {
    let side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    let notes = table.0.get_mut(NOTES).unwrap();
    notes[0] = notes[0].replace("20000=8c1f3a52-uid", "20000=of-another");
    let found = side.read(&table.text()).leaves;
    let wrong = found
        .values()
        .flatten()
        .find(|m| m.owner.as_str() == "of-another");
    assert_eq!(wrong.unwrap().host_port.get(), 20000);
    // it is nothing that anybody wants, so it goes
    table.apply(&side, &BTreeSet::new());
    table.assert_is(&side, &BTreeSet::new());
}

#[test]
fn rule_that_leads_elsewhere_is_damage() {
    let mut side = side(range("20000-29999"));
    let mut table = Table::new();
    table.apply(&side, &some());
    assert!(side.take(&table.text()).0.intact);
    let leaf = table.0.get_mut("PORTMAPPING-TCP-20000-20021").unwrap();
    leaf[0] = leaf[0].replace("10.244.1.7", "10.244.1.8");
    let (observed, altered) = side.take(&table.text());
    assert!(altered && !observed.intact);
    assert_eq!(observed.mappings.difference(&some()).count(), 1);
    table.apply(&side, &some());
    table.assert_is(&side, &some());
}

/// The table as older versions wrote it: owners as comments of rules, and a rule for each pod.
fn old_table(range: portmapping_shared::PortRange, desired: &BTreeSet<Mapping>) -> Table {
    let side = side_by(range, Flavour::Nft, Hairpin::PerPod);
    let mut table = Table::new();
    table.apply(&side, desired);
    for (leaf, mappings) in &side.read(&table.text()).leaves {
        table.0.remove(&notes::chain_of(leaf)).unwrap();
        for mapping in mappings {
            let rules = table.0.get_mut(leaf).unwrap();
            let rule = mapping_rule(mapping);
            let rule = rules.iter_mut().find(|found| **found == rule).unwrap();
            *rule = old_rule(mapping);
        }
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn table_of_an_older_version_is_taken_over(
        before in any_desired(12),
        after in any_desired(12),
        append: bool,
        side in any_side("20000-20200"),
    ) {
        let mut table = old_table(range("20000-20200"), &before);
        let known = side.read(&table.text());
        let found: BTreeSet<Mapping> = known.leaves.into_values().flatten().collect();
        prop_assert_eq!(&found, &before);
        let mut kept = table.clone();
        kept.apply_by(&side, &before, append);
        kept.assert_is(&side, &before);
        table.apply_by(&side, &after, append);
        table.assert_is(&side, &after);
        let old = |rule: &String| rule.contains("--comment") && rule.contains("-j DNAT");
        prop_assert!(!table.0.values().flatten().any(old));
    }

    #[test]
    fn ways_to_hairpin_follow_each_other(
        desired in any_desired(12),
        sides in prop::collection::vec(any_side("20000-20200"), 1..4),
    ) {
        let mut table = Table::new();
        for side in sides {
            table.apply(&side, &desired);
            table.assert_is(&side, &desired);
        }
    }
}
