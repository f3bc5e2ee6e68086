//! Reads our table back, and compares its frame with what it should be.

use std::collections::BTreeMap;

use portmapping_shared::Mapping;
use rustix::io::Errno;

use crate::change_monitor::current_generation;
use crate::netlink::{Attributes, Message, NetlinkError, Socket};

use super::element::{Foreign, Listed, Slot, read_ip};
use super::frame::{Chain, Frame, NAME, OURS, TABLE, header, message};
use super::sets::{SetId, SetShape};
use super::table::{Content, FrameState};

/// How often a read is repeated because any table changed during it.
const ATTEMPTS: usize = 5;

/// Reads the table as it was at one moment. `before` tells elements of ours that another program
/// changed from foreign elements.
pub(super) fn read_table(
    socket: &mut Socket,
    frame: &Frame,
    before: &Content,
) -> Result<Content, NetlinkError> {
    let mut last: Option<Content> = None;
    for _ in 0..ATTEMPTS {
        let generation = generation(socket)?;
        let mut content = match snapshot(socket, frame, before) {
            Err(NetlinkError::Interrupted) => continue,
            content => content?,
        };
        // other programs may change their tables all the time: two equal reads in a row are enough
        if self::generation(socket)? == generation || last.as_ref() == Some(&content) {
            content.generation = generation;
            return Ok(content);
        }
        last = Some(content);
    }
    Err(NetlinkError::Interrupted)
}

fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    current_generation(socket)?.ok_or(NetlinkError::Malformed)
}

fn snapshot(socket: &mut Socket, frame: &Frame, before: &Content) -> Result<Content, NetlinkError> {
    let mut content = Content::default();
    let things = frame.sets.len() + frame.chains.len();
    let mut whole = false;
    let found = get(
        socket,
        message::GETTABLE,
        |encoder| encoder.text(TABLE, OURS),
        |table| {
            // the table must have no flag, such as dormant, and contain nothing that is not ours
            let number = |kind| table.clone().find(kind).and_then(|number| number.be32());
            whole = number(2) == Some(0) && number(3) == u32::try_from(things).ok();
        },
    )?;
    if !found {
        return Ok(content);
    }
    let mut sizes = BTreeMap::new();
    for set in &frame.sets {
        let mut same = false;
        let found = get(
            socket,
            message::GETSET,
            |encoder| {
                encoder.text(TABLE, OURS);
                encoder.text(NAME, set.name);
            },
            |attributes| {
                same = is_shape(set, &attributes);
                sizes.insert(set.id, size(&attributes));
            },
        )?;
        whole &= found && same;
        if found && same {
            whole &= read_elements(socket, frame, set.id, before, &mut content)?;
        }
    }
    for chain in &frame.chains {
        let mut same = false;
        get(
            socket,
            message::GETCHAIN,
            |encoder| {
                encoder.text(TABLE, OURS);
                encoder.text(3, chain.name);
            },
            |attributes| same = is_chain(chain, &attributes),
        )?;
        whole &= same;
    }
    whole &= has_all_rules(socket, frame)?;
    let room = frame.room_for(&content);
    let roomy = |set: &&SetShape| {
        set.data.is_none() || sizes.get(&set.id).is_some_and(|size| *size >= room)
    };
    whole &= frame.sets.iter().all(|set| roomy(&set));
    content.frame = if whole {
        FrameState::Whole
    } else {
        FrameState::Damaged
    };
    Ok(content)
}

/// Requests one object; returns whether it exists.
fn get(
    socket: &mut Socket,
    kind: u16,
    which: impl FnOnce(&mut crate::netlink::Encoder),
    mut read: impl FnMut(Attributes<'_>),
) -> Result<bool, NetlinkError> {
    let asked = socket.request(header(kind, 0), which, |answer| read(answer.attributes()));
    match asked {
        Ok(()) => Ok(true),
        Err(error) if error.is_refusal(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_shape(set: &SetShape, attributes: &Attributes<'_>) -> bool {
    let number = |kind| {
        let number = attributes.clone().find(kind);
        number.and_then(|number| number.be32())
    };
    let data = number(6).zip(number(7));
    number(3).unwrap_or(0) == set.flags()
        && number(4).zip(number(5)) == Some(set.key)
        && data == set.data
}

fn size(attributes: &Attributes<'_>) -> u32 {
    let description = attributes.clone().find(9);
    let size = description.and_then(|description| description.attributes().find(1));
    size.and_then(|size| size.be32()).unwrap_or(u32::MAX)
}

fn is_chain(chain: &Chain, attributes: &Attributes<'_>) -> bool {
    let find = |kind| attributes.clone().find(kind);
    let hook = find(4).is_some_and(|hook| {
        let number = |kind| {
            hook.attributes()
                .find(kind)
                .and_then(|number| number.be32())
        };
        number(1) == Some(chain.hook) && number(2) == Some(chain.priority.cast_unsigned())
    });
    hook && find(5).and_then(|policy| policy.be32()) == Some(1)
        && find(7).and_then(|kind| kind.text()) == Some(chain.kind)
}

/// Returns whether each chain has all of its rules, in their order.
fn has_all_rules(socket: &mut Socket, frame: &Frame) -> Result<bool, NetlinkError> {
    let mut counts = vec![0; frame.chains.len()];
    let mut same = true;
    socket.dump(
        header(message::GETRULE, 0),
        |encoder| encoder.text(TABLE, OURS),
        |message| {
            let find = |kind| message.attributes().find(kind);
            if find(TABLE).and_then(|table| table.text()) != Some(OURS) {
                return;
            }
            let chain = find(NAME).and_then(|chain| chain.text());
            let at = frame
                .chains
                .iter()
                .position(|candidate| Some(candidate.name) == chain);
            let Some((at, count)) = at.and_then(|at| Some((at, counts.get_mut(at)?))) else {
                same = false;
                return;
            };
            let expected = frame
                .chains
                .get(at)
                .and_then(|chain| chain.rules.get(*count));
            let expressions = find(4).map(|list| list.attributes()).unwrap_or_default();
            same &= expected.is_some_and(|rule| rule.is(expressions));
            *count += 1;
        },
    )?;
    let complete = frame
        .chains
        .iter()
        .zip(&counts)
        .all(|(chain, count)| chain.rules.len() == *count);
    Ok(same && complete)
}

/// Adds a set's elements to the content. Returns whether the set may have all of these elements.
fn read_elements(
    socket: &mut Socket,
    frame: &Frame,
    set: SetId,
    before: &Content,
    content: &mut Content,
) -> Result<bool, NetlinkError> {
    let fixed = frame.fixed.get(&set);
    let mut regular = true;
    let mut count = 0;
    let mut mappings = Vec::new();
    socket.dump(
        header(message::GETSETELEM, 0),
        |encoder| {
            encoder.text(TABLE, OURS);
            encoder.text(NAME, set.name());
        },
        |message| {
            for listed in elements(message) {
                if listed.odd {
                    regular = false;
                } else if let Some(keys) = fixed {
                    if let SetId::Hosts(family) = set {
                        content.host_addresses.extend(read_ip(family, listed.key));
                    }
                    regular &= keys.contains(listed.key);
                    count += 1;
                } else if let Some(mapping) = mapping(set, &listed) {
                    mappings.push(mapping);
                } else {
                    take_other(set, &listed, before, content);
                }
            }
        },
    )?;
    // sorts by short keys, because mappings are long; a tree of sorted items is built at once
    mappings.sort_by_cached_key(Slot::of);
    let mappings = mappings.into_iter().map(|m| (Slot::of(&m), m));
    content.mappings.append(&mut mappings.collect());
    Ok(regular && fixed.is_none_or(|keys| keys.len() == count))
}

fn elements<'a>(message: &Message<'a>) -> impl Iterator<Item = Listed<'a>> {
    let list = message.attributes().find(3);
    let list = list.map(|list| list.attributes()).unwrap_or_default();
    list.map(Listed::read)
}

fn mapping(set: SetId, listed: &Listed<'_>) -> Option<Mapping> {
    Slot::read(set, listed.key)?.mapping(listed.data, listed.owner()?)
}

/// Records an element that is not ours.
fn take_other(set: SetId, listed: &Listed<'_>, before: &Content, content: &mut Content) {
    let slot = Slot::read(set, listed.key);
    let was_ours = slot.is_some_and(|slot| before.mappings.contains_key(&slot));
    let key = (set, listed.key.to_vec());
    if was_ours || before.usurped.contains(&key) {
        content.usurped.insert(key);
    } else {
        content.foreign.insert(key, Foreign::new(listed));
    }
}

#[cfg(test)]
mod tests;
