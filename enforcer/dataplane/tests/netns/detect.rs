//! Detects which iptables the node uses.

use portmapping_dataplane::DataplaneError;
use portmapping_dataplane::Flavour;
use portmapping_dataplane::detect::detect;
use portmapping_shared::Protocol::Tcp;

use crate::lab::{self, Lab, POD1, map};
use crate::netns::Netns;

crate::for_each_flavour!(chooses_the_one_with_rules, our_own_rules_decide_nothing);

#[test]
fn chooses_nft_on_a_bare_node() {
    let node = Netns::new();
    let detected = node.run(|| detect(&lab::snapshot(&lab::tools()))).unwrap();
    assert_eq!(detected.flavour, Flavour::Nft);
    assert!(detected.reason.contains("default"), "{}", detected.reason);
}

#[test]
fn refuses_to_guess_between_two() {
    let node = Netns::new();
    node.sh("iptables-legacy -w 30 -N A; iptables-nft -A INPUT -s 192.0.2.1 -j ACCEPT");
    let error = node
        .run(|| detect(&lab::snapshot(&lab::tools())))
        .unwrap_err();
    assert!(
        matches!(error, DataplaneError::BothFlavours { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("--iptables=legacy"), "{error}");
}

fn chooses_the_one_with_rules(flavour: Flavour) {
    let node = Netns::new();
    node.sh(&format!("{flavour} -w 30 -t mangle -N KUBE-IPTABLES-HINT"));
    let detected = node.run(|| detect(&lab::snapshot(&lab::tools()))).unwrap();
    assert_eq!(detected.flavour, flavour);
    assert!(
        detected.reason.contains("1 of them made by Kubernetes"),
        "{}",
        detected.reason
    );
}

fn our_own_rules_decide_nothing(flavour: Flavour) {
    let lab = Lab::new();
    let other = match flavour {
        Flavour::Nft => Flavour::Legacy,
        Flavour::Legacy => Flavour::Nft,
    };
    lab.driver(other).reconcile(&[map(Tcp, 20000, POD1, 9040)]);
    lab.iptables(flavour, "-A INPUT -s 192.0.2.1 -j ACCEPT");
    assert_eq!(
        lab.node
            .run(|| detect(&lab::snapshot(&lab::tools())))
            .unwrap()
            .flavour,
        flavour
    );
}
