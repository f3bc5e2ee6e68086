use proptest::prelude::*;

use super::*;
use crate::netlink::wire::Encoder;

fn answer(code: i32, flags: u16, after: &[u8]) -> Vec<u8> {
    let request = [20_u32.to_ne_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    let mut payload = code.to_ne_bytes().to_vec();
    payload.extend(request);
    if flags & flags::CAPPED == 0 {
        payload.extend([0; 4]);
    }
    payload.extend(after);
    payload
}

fn read(payload: &[u8], flags: u16) -> Option<RefusedMessage> {
    let message = Message {
        kind: 2,
        flags,
        sequence: 12,
        port: 0,
        payload,
    };
    refusal(&message, 10)
}

#[test]
fn zero_is_an_acknowledgement() {
    assert_eq!(read(&answer(0, flags::CAPPED, &[]), flags::CAPPED), None);
}

#[test]
fn offset_and_text_are_read_behind_a_whole_or_capped_request() {
    let mut attributes = Encoder::default();
    attributes.text(MESSAGE, "no such thing");
    attributes.bytes(OFFSET, &36_u32.to_ne_bytes());
    for flags in [flags::ACK_TLVS, flags::ACK_TLVS | flags::CAPPED] {
        let refusal = read(&answer(-2, flags, attributes.as_bytes()), flags).unwrap();
        let expected = RefusedMessage {
            message: 2,
            errno: Errno::NOENT,
            offset: Some(36),
            text: Some("no such thing".to_owned()),
        };
        assert_eq!(refusal, expected);
    }
}

#[test]
fn error_names_a_few_refusals_and_counts_the_rest() {
    let refusal = read(&answer(-17, flags::CAPPED, &[]), flags::CAPPED).unwrap();
    let error = NetlinkError::Refused(vec![refusal; 5]);
    assert!(error.is_refusal(Errno::EXIST));
    let text = error.to_string();
    assert_eq!(text.matches("at message 2").count(), 3, "{text}");
    assert!(text.ends_with("and 2 more"), "{text}");
}

proptest! {
    #[test]
    fn any_answer_is_read_without_panic(
        payload in proptest::collection::vec(any::<u8>(), 0..120),
        flags in any::<u16>(),
    ) {
        let _ = read(&payload, flags);
    }
}
