use super::*;

fn rule() -> Rule {
    Rule::default()
        .version(Ip::V4)
        .mapped(Ip::V4, false, "ports4")
        .sent_to_any_of(Ip::V4, "hosts4")
        .dnat(Ip::V4)
}

fn found(rule: &Rule) -> Attributes<'_> {
    Attributes::new(rule.as_bytes())
}

#[test]
fn rule_equals_itself_and_no_other() {
    assert!(rule().is(found(&rule())));
    for other in [
        Rule::default(),
        rule().leave(),
        Rule::default().version(Ip::V4),
        Rule::default()
            .version(Ip::V6)
            .mapped(Ip::V4, false, "ports4")
            .sent_to_any_of(Ip::V4, "hosts4")
            .dnat(Ip::V4),
        Rule::default()
            .version(Ip::V4)
            .mapped(Ip::V4, false, "ports6")
            .sent_to_any_of(Ip::V4, "hosts4")
            .dnat(Ip::V4),
        Rule::default()
            .version(Ip::V4)
            .mapped(Ip::V4, true, "ports4")
            .sent_to_any_of(Ip::V4, "hosts4")
            .dnat(Ip::V4),
    ] {
        assert!(!rule().is(found(&other)), "{other:?}");
        assert!(!other.is(found(&rule())), "{other:?}");
    }
}

#[test]
fn every_byte_of_both_addresses_is_compared() {
    for (ip, senders, destinations) in [(Ip::V4, 12..16, 16..20), (Ip::V6, 8..24, 24..40)] {
        let rule = Rule::default().between_equals(ip, "same");
        let mut read = Vec::new();
        for expression in found(&rule) {
            let name = expression.attributes().find(EXPR.0);
            let data = expression.attributes().find(EXPR.1).unwrap();
            if name.and_then(|name| name.text()) == Some("payload") {
                let number = |kind| data.attributes().find(kind).unwrap().be32().unwrap();
                assert_eq!((number(2), number(4)), (NETWORK, 1));
                read.push((number(1), number(3)));
            }
        }
        let pairs = senders.rev().zip(destinations.rev());
        let expected = pairs.flat_map(|(from, to)| [(REG_1, from), (REG_1B, to)]);
        assert_eq!(read, expected.collect::<Vec<_>>());
    }
}

#[test]
fn attributes_that_the_kernel_adds_make_no_difference() {
    let expected = Rule::default().expression("meta", |encoder| encoder.be32(2, 16));
    let more = Rule::default().expression("meta", |encoder| {
        encoder.be32(2, 16);
        encoder.be32(9, 1);
    });
    assert!(expected.is(found(&more)));
    assert!(!more.is(found(&expected)));
}

#[test]
fn malformed_bytes_equal_no_rule() {
    for garbage in [&[][..], &[0; 3], &[0; 64], &[0xff; 64]] {
        assert!(!rule().is(Attributes::new(garbage)));
    }
}
