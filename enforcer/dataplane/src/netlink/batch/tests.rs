use rustix::io::Errno;

use super::*;
use crate::netlink::wire::Messages;

const HEADER: Header = Header {
    kind: 0x0a0c,
    flags: flags::REQUEST | flags::CREATE,
    family: 1,
    resource: 0,
};

fn long_list(items: u32) -> Batch {
    let mut batch = Batch::new(None);
    batch.list(
        HEADER,
        |encoder| encoder.text(1, "table"),
        3,
        0..items,
        |encoder, item| {
            encoder.nest(1, |encoder| {
                encoder.be32(1, item);
                encoder.bytes(2, &[0; 100]);
            });
        },
    );
    batch
}

#[test]
fn long_list_is_split_into_messages_and_complete() {
    let mut batch = long_list(2000);
    let encoder = batch.seal(true);
    encoder.number(1);
    assert!(!encoder.is_oversized());
    let messages: Vec<_> = Messages::new(encoder.as_bytes())
        .map(Result::unwrap)
        .collect();
    let kinds: Vec<u16> = messages.iter().map(|message| message.kind).collect();
    assert_eq!(kinds, [BEGIN, 0x0a0c, 0x0a0c, 0x0a0c, 0x0a0c, 0x0a0c, END]);
    let items: Vec<u32> = messages[1..6]
        .iter()
        .flat_map(|message| message.attributes().find(3).unwrap().attributes())
        .map(|item| item.attributes().find(1).unwrap().be32().unwrap())
        .collect();
    assert_eq!(items, (0..2000).collect::<Vec<_>>());
    let acknowledged: Vec<bool> = messages
        .iter()
        .map(|message| message.flags & flags::ACK != 0)
        .collect();
    assert_eq!(
        acknowledged,
        [false, false, false, false, false, true, false]
    );
}

#[test]
fn refused_item_is_found() {
    let mut batch = long_list(2000);
    batch.seal(true);
    // in the second message of the list, after header, table, list and two items of 116 bytes
    let refusal = RefusedMessage {
        message: 2,
        errno: Errno::EXIST,
        offset: Some(20 + 12 + 4 + 2 * 116),
        text: None,
    };
    let item = batch.attribute(&refusal).unwrap();
    assert!(item.nested);
    let first_of_second = 48 * 1024 / 116 + 1;
    assert_eq!(
        item.attributes().find(1).unwrap().be32(),
        Some(first_of_second + 2)
    );
    for (message, offset) in [(2, usize::MAX), (2, 1 << 20), (9, 0)] {
        let nowhere = RefusedMessage {
            message,
            offset: Some(offset),
            ..refusal.clone()
        };
        assert_eq!(batch.attribute(&nowhere), None);
    }
}

#[test]
fn empty_batch_is_recognized_and_a_generation_is_sent() {
    let mut batch = Batch::new(Some(7));
    assert!(batch.is_empty());
    batch.list(HEADER, |_| {}, 3, [0; 0], |_, _| {});
    assert!(batch.is_empty(), "no items, no message");
    batch.message(HEADER, |_| {});
    assert!(!batch.is_empty());
    let encoder = batch.seal(false);
    let begin = Messages::new(encoder.as_bytes()).next().unwrap().unwrap();
    let generation = begin.attributes().find(GENERATION).unwrap();
    assert_eq!(generation.be32(), Some(7));
}
