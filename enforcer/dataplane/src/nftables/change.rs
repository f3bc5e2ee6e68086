//! Turns a plan into one transaction, and updates the known content afterwards.

use std::collections::BTreeSet;

use portmapping_shared::{Mapping, Plan};

use crate::DataplaneError;
use crate::netlink::{Batch, Encoder, flags};

use super::element::{Foreign, Slot, write_mapping};
use super::frame::{Frame, NAME, OURS, TABLE, header, message};
use super::sets::SetId;
use super::table::{Content, FrameState};

/// One transaction, and how it changes the known content. Its size depends only on the plan, except
/// when the whole table is made again.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) batch: Batch,
    removed: BTreeSet<Slot>,
    created: Vec<Mapping>,
}

impl Change {
    /// Returns the change that applies the plan to the content and repairs the frame. If `bound`,
    /// the kernel refuses to make the table again if any table has changed since the content was
    /// read.
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
                // an element must be replaced, because its target and comment cannot be changed
                Some(_) => _ = removed.insert(slot),
                None => {}
            }
            created.push(mapping.clone());
        }
        let mut change = Self {
            batch: Batch::new(None),
            removed,
            created,
        };
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

    /// Writes deletions first, because an element and its replacement have the same key.
    fn write_differences(&mut self, content: &Content, frame: &Frame) {
        let batch = &mut self.batch;
        for set in frame.sets.iter().map(|set| set.id) {
            let usurped = content.usurped.iter().filter(|(at, _)| *at == set);
            delete(batch, set, usurped, |encoder, (_, key)| {
                Foreign::write(encoder, key, None);
            });
            let removed = self.removed.iter().filter(|slot| slot.set() == set);
            delete(batch, set, removed, |encoder, slot| slot.write_key(encoder));
        }
        self.write_created(frame);
    }

    fn write_created(&mut self, frame: &Frame) {
        let batch = &mut self.batch;
        for set in frame.sets.iter().map(|set| set.id) {
            let created = self.created.iter();
            let created = created.filter(|mapping| Slot::of(mapping).set() == set);
            add(batch, set, flags::EXCL, created, write_mapping);
        }
    }

    /// Makes the table again, in the transaction that removes the old one. So no packet passes a
    /// frame without mappings, and connection tracking is not interrupted.
    fn write_everything(&mut self, content: &Content, frame: &Frame) {
        let replace = content.frame == FrameState::Damaged;
        let size = frame.room_for(content).next_power_of_two();
        frame.make(&mut self.batch, OURS, replace, size);
        let batch = &mut self.batch;
        let stays = |slot: &Slot| !self.removed.contains(slot);
        for set in &frame.sets {
            let id = set.id;
            let mappings = content.mappings.iter();
            let mappings = mappings.filter(|(slot, _)| slot.set() == id && stays(slot));
            add(batch, id, flags::EXCL, mappings, |encoder, (_, mapping)| {
                write_mapping(encoder, mapping);
            });
            // elements of others are restored unchanged
            let foreign = content.foreign.iter();
            let foreign =
                foreign.filter(|((at, key), _)| *at == id && key.len() == set.key.1 as usize);
            add(batch, id, 0, foreign, |encoder, ((_, key), foreign)| {
                Foreign::write(encoder, key, Some(foreign));
            });
        }
        self.write_created(frame);
    }

    /// Updates the content after the transaction was applied.
    pub(super) fn accept(self, content: &mut Content) {
        if self.batch.is_empty() {
            return;
        }
        content.frame = FrameState::Whole;
        content.usurped.clear();
        for slot in &self.removed {
            content.mappings.remove(slot);
        }
        let created = self.created.into_iter();
        let created = created.map(|mapping| (Slot::of(&mapping), mapping));
        content.mappings.extend(created);
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
