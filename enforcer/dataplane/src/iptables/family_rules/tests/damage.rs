//! Damage by another program is detected and repaired.

use super::*;

/// A change that another program makes.
#[derive(Clone, Debug)]
enum Damaging {
    RemoveRule(prop::sample::Index),
    DoubleRule(prop::sample::Index),
    ReplaceRule(prop::sample::Index, String),
    InsertRule(prop::sample::Index, String),
    FlushChain(prop::sample::Index),
    AddChain(String),
}

fn damaging() -> impl Strategy<Value = Damaging> {
    let index = any::<prop::sample::Index>;
    let rule = || {
        prop::sample::select(vec![
            "-j ACCEPT",
            "-p tcp -j PORTMAPPING",
            "-m comment --comment \"portmapping:x\" -j DROP",
            "-p tcp -m tcp --dport 20000 -m comment --comment \"portmapping:x\" -j DNAT --to-destination 10.244.1.99:80",
            "-p tcp -m tcp --dport 20000 -j DNAT --to-destination 10.244.1.99:80",
        ])
        .prop_map(str::to_owned)
    };
    prop_oneof![
        index().prop_map(Damaging::RemoveRule),
        index().prop_map(Damaging::DoubleRule),
        (index(), rule()).prop_map(|(at, rule)| Damaging::ReplaceRule(at, rule)),
        (index(), rule()).prop_map(|(at, rule)| Damaging::InsertRule(at, rule)),
        index().prop_map(Damaging::FlushChain),
        "PORTMAPPING-[A-Z]{1,5}".prop_map(Damaging::AddChain),
    ]
}

impl Damaging {
    /// Damages only our chains, and only our rules in built-in chains.
    fn work(&self, table: &mut TableModel) {
        let ours = |chain: &str, rule: &str| {
            super::super::super::rule::is_our_chain(chain)
                || rule.contains("--comment portmapping ")
        };
        let places: Vec<(String, usize)> = table
            .0
            .iter()
            .flat_map(|(chain, rules)| {
                let places = rules
                    .iter()
                    .enumerate()
                    .filter(|(_, rule)| ours(chain, rule));
                places
                    .map(|(at, _)| (chain.clone(), at))
                    .collect::<Vec<_>>()
            })
            .collect();
        let place = |index: &prop::sample::Index| (!places.is_empty()).then(|| index.get(&places));
        match self {
            Self::RemoveRule(index) => {
                if let Some((chain, at)) = place(index) {
                    table.0.get_mut(chain).unwrap().remove(*at);
                }
            }
            Self::DoubleRule(index) => {
                if let Some((chain, at)) = place(index) {
                    let rules = table.0.get_mut(chain).unwrap();
                    rules.push(rules[*at].clone());
                }
            }
            Self::ReplaceRule(index, rule) => {
                if let Some((chain, at)) = place(index)
                    && chain.starts_with("PORT")
                {
                    table.0.get_mut(chain).unwrap()[*at].clone_from(rule);
                }
            }
            Self::InsertRule(index, rule) => {
                if let Some((chain, at)) = place(index)
                    && chain.starts_with("PORT")
                {
                    table.0.get_mut(chain).unwrap().insert(*at, rule.clone());
                }
            }
            Self::FlushChain(index) => {
                if let Some((chain, _)) = place(index)
                    && chain.starts_with("PORT")
                {
                    table.0.get_mut(chain).unwrap().clear();
                }
            }
            Self::AddChain(chain) => _ = table.0.entry(chain.clone()).or_default(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_damage_is_repaired(
        desired in any_desired(12),
        damages in prop::collection::vec(damaging(), 1..6),
    ) {
        let rules = rules(range("20000-20200"));
        let mut table = TableModel::new();
        table.apply(&rules, &desired);
        for damage in &damages {
            damage.work(&mut table);
        }
        let known = rules.parse(&table.text());
        let present = known.mappings().cloned().collect::<BTreeSet<_>>();
        let mut whole = TableModel::new();
        whole.apply(&rules, &desired);
        let unseen = present == desired && known.damage == Damage::default();
        prop_assert!(!unseen || table.sorted() == whole.sorted(), "damage was not seen: {:?}", damages);
        table.apply(&rules, &desired);
        table.assert_is(&rules, &desired);
    }

    #[test]
    fn altered_output_is_read_without_harm_to_others(
        desired in any_desired(6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..20),
        keep: prop::sample::Index,
    ) {
        let rules = rules(range("20000-20007"));
        let mut table = TableModel::new();
        table.apply(&rules, &desired);
        let mut text: Vec<char> = table.text().chars().collect();
        for (at, with) in changes {
            *at.get_mut(&mut text) = with;
        }
        text.truncate(keep.index(text.len()) + 1);
        let known = rules.parse(&text.iter().collect::<String>());
        let transaction = change::prepare(&rules.layout, known, &[], &[]).1;
        let chains = transaction.chains.keys().chain(&transaction.obsolete);
        for chain in chains.chain(transaction.appended.iter().map(|(chain, _)| chain)) {
            prop_assert!(super::super::super::rule::is_our_chain(chain), "{}", chain);
        }
        for (_, rule) in &transaction.deleted {
            let ours = rule.contains("portmapping");
            prop_assert!(ours, "{}", rule);
        }
    }

    #[test]
    fn any_text_is_read_without_panic(text in hostile_text()) {
        let rules = rules(range("20000-20007"));
        let known = rules.parse(&text);
        let _ = change::prepare(&rules.layout, known, &[], &[]).1.text();
    }
}
