use super::super::testing::range;
use super::*;

fn all(family: Family) -> Vec<String> {
    rules(family, &Settings::new(range("20000-29999")))
}

#[test]
fn every_kind_of_rule_is_tried_once() {
    for family in Family::ALL {
        let rules = all(family);
        for part in [
            "-p tcp -m tcp --dport 20000 -j DNAT",
            "-p udp -m udp --dport 20000 -j DNAT",
            "-j DNAT --to-destination ",
            "-m conntrack --ctstate DNAT -m comment --comment portmapping -j RETURN",
            "-m conntrack ! --ctorigdstport 20000:29999 -j RETURN",
            "-m comment --comment \"portmapping:rehearsal\" -j MASQUERADE",
        ] {
            assert!(
                rules.iter().any(|rule| rule.contains(part)),
                "{part}: {rules:#?}"
            );
        }
        assert!(rules.len() < 20, "{rules:#?}");
        assert!(
            !rules.iter().any(|rule| rule.contains("PORTMAPPING")),
            "{rules:#?}"
        );
    }
}

/// Kernels of some distributions lack it, and iptables-nft cannot print it everywhere.
#[test]
fn no_rule_needs_a_program_in_the_kernel() {
    for family in Family::ALL {
        assert!(!all(family).iter().any(|rule| rule.contains("-m bpf")));
    }
}
