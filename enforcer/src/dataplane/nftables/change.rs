//! A plan as one transaction, and what is known once it is done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_enforcer_core::Plan;
use portmapping_shared::{Mapping, PodUid};

use crate::dataplane::DataplaneError;
use crate::dataplane::iptables::Family;
use crate::dataplane::netlink::{Batch, Encoder, flags};

use super::element::{Foreign, Slot, write_hairpin, write_mapping};
use super::frame::{Frame, NAME, OURS, TABLE, header, message};
use super::sets::SetId;
use super::table::{Content, FrameState};

/// One transaction, and how it changes what is known. Its size is that of the plan, but where the
/// whole table is made anew.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) batch: Batch,
    removed: BTreeSet<Slot>,
    created: Vec<Mapping>,
    hairpins_removed: Vec<IpAddr>,
    hairpins_created: Vec<(IpAddr, PodUid)>,
}

impl Change {
    /// What leads from the content to the plan's end, in a whole frame. Bound, a table made anew
    /// is refused once anybody has changed any table since the content was read.
    pub(super) fn new(
        content: &Content,
        frame: &Frame,
        plan: &Plan,
        bound: bool,
    ) -> Result<Self, DataplaneError> {
        let mut removed: BTreeSet<Slot> = plan
            .to_remove
            .iter()
            .map(|mapping| (Slot::of(mapping), mapping))
            .filter(|(slot, mapping)| content.mappings.get(slot) == Some(*mapping))
            .map(|(slot, _)| slot)
            .collect();
        let mut created = Vec::with_capacity(plan.to_create.len());
        for mapping in &plan.to_create {
            let slot = Slot::of(mapping);
            if content.is_foreign(&slot) {
                let mapping = Box::new(mapping.clone());
                return Err(DataplaneError::ForeignElement { mapping });
            }
            match content.mappings.get(&slot) {
                Some(there) if there == mapping && !removed.contains(&slot) => continue,
                // neither target nor comment of an element can be changed
                Some(_) => _ = removed.insert(slot),
                None => {}
            }
            created.push(mapping.clone());
        }
        let mut change = Self {
            batch: Batch::new(None),
            removed,
            created,
            hairpins_removed: Vec::new(),
            hairpins_created: Vec::new(),
        };
        change.plan_hairpins(content);
        match content.frame {
            FrameState::Whole => change.write_differences(content, frame),
            FrameState::Missing if change.created.is_empty() => {}
            FrameState::Missing | FrameState::Damaged => {
                change.batch = Batch::new(bound.then_some(content.generation));
                change.write_everything(content, frame);
            }
        }
        Ok(change)
    }

    fn plan_hairpins(&mut self, content: &Content) {
        // pods whose count of mappings changes, with an owner for a new element
        let mut counts: BTreeMap<IpAddr, (usize, Option<&PodUid>)> = BTreeMap::new();
        let count = |ip: &IpAddr| content.pods.get(ip).copied().unwrap_or(0);
        for ip in &content.unsettled {
            let owner = content.mappings.values().find(|m| m.pod_ip == *ip);
            counts.insert(*ip, (count(ip), owner.map(|mapping| &mapping.owner)));
        }
        for mapping in &self.created {
            let entry = counts.entry(mapping.pod_ip);
            let entry = entry.or_insert_with(|| (count(&mapping.pod_ip), None));
            *entry = (entry.0 + 1, Some(&mapping.owner));
        }
        for mapping in self.removed.iter().filter_map(|s| content.mappings.get(s)) {
            let entry = counts.entry(mapping.pod_ip);
            let entry = entry.or_insert_with(|| (count(&mapping.pod_ip), None));
            entry.0 = entry.0.saturating_sub(1);
        }
        for (ip, (count, owner)) in counts {
            if count == 0 && content.hairpins.contains(&ip) {
                self.hairpins_removed.push(ip);
            } else if let Some(owner) = owner.filter(|_| count > 0 && !content.has_hairpin(ip)) {
                self.hairpins_created.push((ip, owner.clone()));
            }
        }
    }

    /// Deletions first: an element that is replaced has the same key.
    fn write_differences(&mut self, content: &Content, frame: &Frame) {
        let batch = &mut self.batch;
        for set in frame.sets.iter().map(|set| set.id) {
            let usurped = content.usurped.iter().filter(|(at, _)| *at == set);
            delete(batch, set, usurped, |encoder, (_, key)| {
                Foreign::write(encoder, key, None);
            });
            let removed = self.removed.iter().filter(|slot| slot.set() == set);
            delete(batch, set, removed, |encoder, slot| slot.write_key(encoder));
            let hairpins = self.hairpins_removed.iter();
            let hairpins = hairpins.filter(|ip| SetId::Hairpin(Family::of(**ip)) == set);
            delete(batch, set, hairpins, |encoder, ip| {
                write_hairpin(encoder, *ip, None);
            });
        }
        self.write_created(frame);
    }

    fn write_created(&mut self, frame: &Frame) {
        let batch = &mut self.batch;
        for set in frame.sets.iter().map(|set| set.id) {
            let created = self.created.iter();
            let created = created.filter(|mapping| Slot::of(mapping).set() == set);
            add(batch, set, flags::EXCL, created, write_mapping);
            let hairpins = self.hairpins_created.iter();
            let hairpins = hairpins.filter(|(ip, _)| SetId::Hairpin(Family::of(*ip)) == set);
            add(batch, set, 0, hairpins, |encoder, (ip, owner)| {
                write_hairpin(encoder, *ip, Some(owner));
            });
        }
    }

    /// The table anew, in the very transaction that takes the old one away: no packet meets a
    /// frame without mappings, and connection tracking never pauses.
    fn write_everything(&mut self, content: &Content, frame: &Frame) {
        let replace = content.frame == FrameState::Damaged;
        let size = frame.room_for(content).next_power_of_two();
        frame.make(&mut self.batch, OURS, replace, size);
        let batch = &mut self.batch;
        let stays = |slot: &Slot| !self.removed.contains(slot);
        let staying = || {
            let mappings = content.mappings.iter();
            mappings.filter(|(slot, _)| stays(slot))
        };
        let mut owners: BTreeMap<IpAddr, PodUid> = BTreeMap::new();
        for mapping in staying().map(|(_, mapping)| mapping).chain(&self.created) {
            if !owners.contains_key(&mapping.pod_ip) && !content.has_foreign_hairpin(mapping.pod_ip)
            {
                owners.insert(mapping.pod_ip, mapping.owner.clone());
            }
        }
        for set in &frame.sets {
            let id = set.id;
            let mappings = staying().filter(|(slot, _)| slot.set() == id);
            add(batch, id, flags::EXCL, mappings, |encoder, (_, mapping)| {
                write_mapping(encoder, mapping);
            });
            // what others put here is theirs, and goes back as it was
            let foreign = content.foreign.iter();
            let foreign =
                foreign.filter(|((at, key), _)| *at == id && key.len() == set.key.1 as usize);
            add(batch, id, 0, foreign, |encoder, ((_, key), foreign)| {
                Foreign::write(encoder, key, Some(foreign));
            });
        }
        let gone = content
            .hairpins
            .iter()
            .filter(|ip| !owners.contains_key(ip));
        self.hairpins_removed = gone.copied().collect();
        self.hairpins_created = owners.into_iter().collect();
        self.write_created(frame);
    }

    /// What is known once the transaction is done.
    pub(super) fn accept(self, content: &mut Content) {
        if self.batch.is_empty() {
            return;
        }
        content.frame = FrameState::Whole;
        content.usurped.clear();
        content.unsettled.clear();
        for slot in &self.removed {
            let Some(mapping) = content.mappings.remove(slot) else {
                continue;
            };
            if let Some(count) = content.pods.get_mut(&mapping.pod_ip) {
                *count -= 1;
                if *count == 0 {
                    content.pods.remove(&mapping.pod_ip);
                }
            }
        }
        for mapping in self.created {
            *content.pods.entry(mapping.pod_ip).or_default() += 1;
            content.mappings.insert(Slot::of(&mapping), mapping);
        }
        for ip in self.hairpins_removed {
            content.hairpins.remove(&ip);
        }
        let hairpins = self.hairpins_created.into_iter();
        content.hairpins.extend(hairpins.map(|(ip, _)| ip));
    }
}

fn head(encoder: &mut Encoder, set: SetId) {
    encoder.text(TABLE, OURS);
    encoder.text(NAME, set.name());
}

fn add<T>(
    batch: &mut Batch,
    set: SetId,
    exclusive: u16,
    items: impl IntoIterator<Item = T>,
    write: impl Fn(&mut Encoder, T),
) {
    let header = header(message::NEWSETELEM, flags::CREATE | exclusive);
    batch.list(header, |encoder| head(encoder, set), 3, items, write);
}

fn delete<T>(
    batch: &mut Batch,
    set: SetId,
    items: impl IntoIterator<Item = T>,
    write: impl Fn(&mut Encoder, T),
) {
    let header = header(message::DELSETELEM, 0);
    batch.list(header, |encoder| head(encoder, set), 3, items, write);
}

#[cfg(test)]
mod tests;
