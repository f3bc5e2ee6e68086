//! A change of one family, as one transaction. Pure.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use portmapping_shared::Mapping;

use super::super::layout::{Chains, Layout, Pod, bucket, leaf_rule, leaf_rules};
use super::super::reading::{Damage, Known};
use super::super::transaction::Transaction;

/// The chains that a change touches.
#[derive(Debug, Default)]
struct Touched {
    /// Chains to be written again with all their rules.
    rewritten: BTreeSet<String>,
    /// Rules to be appended: chain and rule.
    appended: Vec<(String, String)>,
}

/// Returns the state after the change, and the transaction that makes it. Without damage and
/// without a new protocol, its cost depends only on the size of the change.
///
/// A chain that loses a rule is written again. With iptables-nft, deleting the rule would cost the
/// same, because iptables-nft must read the chain first. Appending a new rule costs a third of
/// that.
pub(super) fn prepare(
    layout: &Layout,
    mut known: Known,
    remove: &[&Mapping],
    create: &[&Mapping],
) -> (Known, Transaction) {
    let mut changed = remove.iter().chain(create);
    let frame_stays = known.damage.chains.is_empty()
        && create.iter().all(|m| known.protocols.contains(&m.protocol))
        && changed.all(|mapping| layout.is_in_range(mapping));
    let before = (!frame_stays).then(|| known.chains(layout));
    let damage = std::mem::take(&mut known.damage);
    known.untouched = false;
    let touched = change(layout, &mut known, remove, create);
    let transaction = transaction(layout, &known, before, damage, touched);
    (known, transaction)
}

fn change(layout: &Layout, known: &mut Known, remove: &[&Mapping], create: &[&Mapping]) -> Touched {
    let mut touched = Touched::default();
    for mapping in remove {
        let leaf = layout.leaf(mapping);
        if let Entry::Occupied(mut found) = known.leaves.entry(leaf.clone()) {
            let removed = found.get_mut().remove(*mapping);
            if found.get().is_empty() {
                found.remove();
            }
            if removed && let Some(pod) = known.pods.get_mut(&mapping.pod_ip) {
                pod.mappings = pod.mappings.saturating_sub(1);
            }
        }
        touched.rewritten.insert(leaf);
    }
    for mapping in create {
        known.protocols.insert(mapping.protocol);
        let leaf = layout.leaf(mapping);
        let mappings = known.leaves.entry(leaf.clone()).or_default();
        // the rules of one port must be in order
        let alone = mappings.iter().all(|m| m.host_port != mapping.host_port);
        if !mappings.insert((*mapping).clone()) {
            continue;
        }
        let bucket = bucket(mapping.pod_ip);
        let pod = known.pods.entry(mapping.pod_ip).or_insert_with(|| {
            let rule = layout.pod_rule(mapping.pod_ip, &mapping.owner);
            touched.appended.push((bucket.clone(), rule));
            Pod {
                owner: mapping.owner.clone(),
                mappings: 0,
            }
        });
        // the next pod at the address; while rules of the previous one stay, its own name their owner
        if pod.mappings == 0 && pod.owner != mapping.owner {
            pod.owner = mapping.owner.clone();
            touched.rewritten.insert(bucket);
        }
        pod.mappings += 1;
        if alone {
            let rule = leaf_rule(mapping, &known.pods);
            touched.appended.push((leaf, rule));
        } else {
            touched.rewritten.insert(leaf);
        }
    }
    let without_mappings = known.pods.extract_if(.., |_, pod| pod.mappings == 0);
    let buckets = without_mappings.map(|(pod, _)| bucket(pod));
    touched.rewritten.extend(buckets);
    touched
}

fn transaction(
    layout: &Layout,
    known: &Known,
    before: Option<Chains>,
    damage: Damage,
    mut touched: Touched,
) -> Transaction {
    let mut obsolete = damage.obsolete;
    let chains = if let Some(before) = before {
        let mut after = known.chains(layout);
        let gone = before.keys().filter(|chain| !after.contains_key(*chain));
        obsolete.extend(gone.cloned());
        after.retain(|chain, rules| {
            damage.chains.contains(chain)
                || touched.rewritten.contains(chain)
                || before.get(chain).is_none_or(|old| old != rules)
        });
        after
    } else {
        rules_of(layout, known, touched.rewritten)
    };
    // a chain that is written again already contains its new rules
    touched
        .appended
        .retain(|(chain, _)| !chains.contains_key(chain));
    // a chain that was obsolete before may be needed now
    obsolete.retain(|chain| !chains.contains_key(chain));
    let (mut deleted, mut inserted) = (Vec::new(), Vec::new());
    for (jump, rules) in damage.misplaced_jumps {
        deleted.extend(rules.into_iter().map(|rule| (jump.from.to_owned(), rule)));
        inserted.push((jump.from.to_owned(), jump.rule.to_owned()));
    }
    Transaction {
        chains,
        appended: touched.appended,
        obsolete,
        deleted,
        inserted,
    }
}

/// Returns the rules of leaves and of chains of pods.
fn rules_of(layout: &Layout, known: &Known, chains: BTreeSet<String>) -> Chains {
    let rules = |chain: &String| {
        if let Some(mappings) = known.leaves.get(chain) {
            return leaf_rules(mappings, &known.pods);
        }
        let here = known.pods.iter().filter(|(ip, _)| bucket(**ip) == *chain);
        here.map(|(ip, pod)| layout.pod_rule(*ip, &pod.owner))
            .collect()
    };
    let written = chains.into_iter().map(|chain| {
        let rules = rules(&chain);
        (chain, rules)
    });
    written.collect()
}
