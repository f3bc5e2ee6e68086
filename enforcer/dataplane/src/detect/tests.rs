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

fn missing() -> Result<Contents, String> {
    Err(ExecError::Missing {
        program: "iptables-save",
    }
    .to_string())
}

#[test]
fn follows_the_node() {
    for (nft, legacy, flavour, reason) in [
        (Ok(NONE), Ok(NONE), Flavour::Nft, "default"),
        (Ok(KUBE), Ok(NONE), Flavour::Nft, "5 rules"),
        (
            Ok(NONE),
            Ok(KUBE),
            Flavour::Legacy,
            "2 of them made by Kubernetes",
        ),
        (Ok(KUBE), missing(), Flavour::Nft, "not installed"),
        (missing(), Ok(NONE), Flavour::Legacy, "not installed"),
    ] {
        let detected = choose(nft, legacy).unwrap();
        assert_eq!(detected.flavour, flavour);
        assert!(detected.reason.contains(reason), "{}", detected.reason);
    }
}

#[test]
fn refuses_to_guess() {
    let error = choose(Ok(KUBE), Ok(KUBE)).unwrap_err();
    assert!(matches!(error, DataplaneError::BothFlavours { .. }));
    let error = choose(missing(), missing()).unwrap_err();
    assert!(matches!(error, DataplaneError::NoIptables { .. }));
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
