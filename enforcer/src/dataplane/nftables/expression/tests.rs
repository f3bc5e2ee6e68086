use super::*;

fn rule() -> Rule {
    Rule::default()
        .version(Ip::V4)
        .mapped(Ip::V4, false, "ports4")
        .for_this_node()
        .dnat(Ip::V4)
}

fn found(rule: &Rule) -> Attributes<'_> {
    Attributes::new(rule.as_bytes())
}

#[test]
fn rule_is_itself_and_no_other() {
    assert!(rule().is(found(&rule())));
    for other in [
        Rule::default(),
        rule().leave(),
        Rule::default().version(Ip::V4),
        Rule::default()
            .version(Ip::V6)
            .mapped(Ip::V4, false, "ports4")
            .for_this_node()
            .dnat(Ip::V4),
        Rule::default()
            .version(Ip::V4)
            .mapped(Ip::V4, false, "ports6")
            .for_this_node()
            .dnat(Ip::V4),
        Rule::default()
            .version(Ip::V4)
            .mapped(Ip::V4, true, "ports4")
            .for_this_node()
            .dnat(Ip::V4),
    ] {
        assert!(!rule().is(found(&other)), "{other:?}");
        assert!(!other.is(found(&rule())), "{other:?}");
    }
}

#[test]
fn attributes_that_the_kernel_adds_are_no_difference() {
    let expected = Rule::default().expression("meta", |encoder| encoder.be32(2, 16));
    let more = Rule::default().expression("meta", |encoder| {
        encoder.be32(2, 16);
        encoder.be32(9, 1);
    });
    assert!(expected.is(found(&more)));
    assert!(!more.is(found(&expected)));
}

#[test]
fn garbage_is_another_rule() {
    for garbage in [&[][..], &[0; 3], &[0; 64], &[0xff; 64]] {
        assert!(!rule().is(Attributes::new(garbage)));
    }
}
