use super::super::ExecError;
use super::*;

const KUBE: Contents = Contents {
    chains: 3,
    rules: 5,
    kube_chains: 2,
};
const NONE: Contents = Contents {
    chains: 0,
    rules: 0,
    kube_chains: 0,
};

/// Rules of a firewall, without any of Kubernetes.
const OTHER: Contents = Contents {
    chains: 1,
    rules: 4,
    kube_chains: 0,
};

fn missing() -> State {
    let program = "iptables-save";
    State::Missing(ExecError::Missing { program }.to_string())
}

fn unreadable() -> State {
    State::Unreadable("iptables-save cannot print a rule".to_owned())
}

#[test]
fn follows_the_node() {
    use State::Readable;
    for (nft, legacy, flavour, reason) in [
        (Readable(NONE), Readable(NONE), Flavour::Nft, "default"),
        (Readable(KUBE), Readable(NONE), Flavour::Nft, "5 rules"),
        (
            Readable(NONE),
            Readable(KUBE),
            Flavour::Legacy,
            "2 of them made by Kubernetes",
        ),
        (Readable(KUBE), missing(), Flavour::Nft, "not installed"),
        (missing(), Readable(NONE), Flavour::Legacy, "not installed"),
        (Readable(KUBE), unreadable(), Flavour::Nft, "cannot print"),
        (
            unreadable(),
            Readable(KUBE),
            Flavour::Legacy,
            "cannot print",
        ),
        // both carry rules: that of the kubelet and kube-proxy
        (Readable(KUBE), Readable(OTHER), Flavour::Nft, "4 rules"),
        (Readable(OTHER), Readable(KUBE), Flavour::Legacy, "4 rules"),
    ] {
        let detected = choose_flavour(nft, legacy).unwrap();
        assert_eq!(detected.flavour, flavour);
        assert!(detected.reason.contains(reason), "{}", detected.reason);
    }
}

#[test]
fn refuses_to_guess() {
    use State::Readable;
    for both in [KUBE, OTHER] {
        let error = choose_flavour(Readable(both), Readable(both)).unwrap_err();
        assert!(matches!(error, DataplaneError::BothFlavours { .. }));
    }
    let error = choose_flavour(missing(), missing()).unwrap_err();
    assert!(matches!(error, DataplaneError::NoIptables { .. }));
    for (nft, legacy, unreadable) in [
        (unreadable(), Readable(NONE), Flavour::Nft),
        (unreadable(), missing(), Flavour::Nft),
        (Readable(NONE), unreadable(), Flavour::Legacy),
        (missing(), unreadable(), Flavour::Legacy),
    ] {
        let error = choose_flavour(nft, legacy).unwrap_err();
        assert!(
            matches!(error, DataplaneError::IptablesUnreadable { flavour, .. } if flavour == unreadable)
        );
    }
}

#[test]
fn counts_what_is_not_built_in_and_not_ours() {
    let mut contents = Contents::default();
    contents.add(
        "# a comment
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:DOCKER - [0:0]
:PORTMAPPING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -m comment --comment portmapping -j PORTMAPPING
-A PORTMAPPING -p tcp -g PORTMAPPING-TCP
COMMIT
",
    );
    assert_eq!(
        contents,
        Contents {
            chains: 2,
            rules: 1,
            kube_chains: 1
        }
    );
}
