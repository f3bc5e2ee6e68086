use proptest::prelude::*;

use super::*;

const HEADER: Header = Header {
    kind: 0x0a0c,
    flags: flags::REQUEST,
    family: 1,
    resource: 0x0102,
};

#[test]
fn message_has_the_layout_that_the_kernel_expects() {
    let mut encoder = Encoder::default();
    encoder.message(HEADER, |encoder| {
        encoder.text(1, "abc");
        encoder.nest(3, |encoder| encoder.be32(2, 1));
        encoder.bytes(6, &[7; 5]);
    });
    encoder.number(9);
    #[rustfmt::skip]
    let expected = [
        52, 0, 0, 0, 0x0c, 0x0a, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        1, 0, 1, 2,
        8, 0, 1, 0, b'a', b'b', b'c', 0,
        12, 0, 3, 0x80, 8, 0, 2, 0, 0, 0, 0, 1,
        9, 0, 6, 0, 7, 7, 7, 7, 7, 0, 0, 0,
    ];
    assert_eq!(encoder.as_bytes(), expected);
}

#[test]
fn what_was_written_is_read() {
    let mut encoder = Encoder::default();
    encoder.message(HEADER, |encoder| {
        encoder.nest(3, |encoder| {
            encoder.be32(1, 77);
            encoder.text(2, "name");
        });
    });
    encoder.message(HEADER, |_| {});
    encoder.number(u32::MAX);
    let messages: Vec<_> = Messages::new(encoder.as_bytes())
        .map(Result::unwrap)
        .collect();
    assert_eq!(messages.len(), 2);
    assert_eq!((messages[0].sequence, messages[1].sequence), (u32::MAX, 0));
    let nest = messages[0].attributes().find(3).unwrap();
    assert!(nest.nested);
    assert_eq!(nest.attributes().find(1).unwrap().be32(), Some(77));
    assert_eq!(nest.attributes().find(2).unwrap().text(), Some("name"));
    assert_eq!(nest.attributes().find(4), None);
}

#[test]
fn too_long_value_is_recorded_and_not_truncated() {
    let mut encoder = Encoder::default();
    encoder.bytes(1, &vec![0; MAX_ATTRIBUTE]);
    assert!(!encoder.is_oversized());
    encoder.bytes(1, &vec![0; MAX_ATTRIBUTE + 1]);
    assert!(encoder.is_oversized());
    let mut encoder = Encoder::default();
    encoder.text(1, &"x".repeat(MAX_ATTRIBUTE));
    assert!(encoder.is_oversized());
    let mut encoder = Encoder::default();
    encoder.nest(1, |encoder| {
        for _ in 0..2 {
            encoder.bytes(1, &vec![0; 40_000]);
        }
    });
    assert!(encoder.is_oversized());
}

#[test]
fn truncated_message_is_an_error() {
    let mut encoder = Encoder::default();
    encoder.message(HEADER, |encoder| encoder.be32(1, 1));
    for length in 1..encoder.as_bytes().len() {
        let read: Vec<_> = Messages::new(&encoder.as_bytes()[..length]).collect();
        assert_eq!(read, [Err(Truncated)], "{length}");
    }
}

/// Reads attributes in every possible way, down to this depth.
fn walk(attributes: Attributes<'_>, depth: usize) -> usize {
    attributes
        .map(|attribute| {
            let _ = (attribute.be32(), attribute.text());
            1 + if depth > 0 {
                walk(attribute.attributes(), depth - 1)
            } else {
                0
            }
        })
        .sum()
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        for message in Messages::new(&bytes).flatten() {
            prop_assert!(message.payload.len() <= bytes.len());
            walk(message.attributes(), 4);
        }
        prop_assert!(walk(Attributes::new(&bytes), 0) <= bytes.len() / 4 + 1);
    }

    #[test]
    fn any_length_field_is_bounded(length in any::<u32>(), tail in proptest::collection::vec(any::<u8>(), 12..80)) {
        let bytes = [&length.to_ne_bytes()[..], &tail].concat();
        for message in Messages::new(&bytes).flatten() {
            walk(message.attributes(), 4);
        }
    }

    #[test]
    fn written_attributes_are_read_back(values in proptest::collection::vec((0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..90)), 0..20)) {
        let mut encoder = Encoder::default();
        for (kind, value) in &values {
            encoder.bytes(*kind, value);
        }
        prop_assert_eq!(encoder.as_bytes().len() % 4, 0);
        let read: Vec<(u16, Vec<u8>)> = Attributes::new(encoder.as_bytes())
            .map(|attribute| (attribute.kind, attribute.value.to_vec()))
            .collect();
        prop_assert_eq!(read, values);
    }
}
