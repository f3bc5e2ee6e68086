//! Decides whether connections to mapped ports are masqueraded (`--masquerade`).
//!
//! With BPF host routing, Cilium takes the replies of pods past netfilter, and a client outside the
//! node gets none. It writes what it does into a file of its state directory. Unanswered connections
//! prove nothing: a network policy that drops the client looks the same, and masquerading would get
//! around it.

use std::fs;
use std::io;
use std::path::Path;

use clap::ValueEnum;
use serde_json::Value;

/// The file in which Cilium's agent writes its settings, as they are in effect.
const CILIUM_CONFIG: &str = "/run/cilium/state/agent-runtime-config.json";
/// The interfaces of this network namespace, one a line.
const LINKS: &str = "/proc/thread-self/net/dev";
/// The interface that Cilium makes on each node.
const CILIUM_LINK: &str = "cilium_host";

/// Whether connections to mapped ports are masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MasqueradeChoice {
    /// Where Cilium says that replies leave the node past netfilter.
    Auto,
    /// On every node.
    Always,
    /// On no node.
    Never,
}

/// Whether connections are masqueraded, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) on: bool,
    /// A sentence for people.
    pub(crate) reason: String,
    /// Whether Cilium is there and does not say how it routes.
    pub(crate) is_unknown: bool,
}

impl Decision {
    /// The decision after an earlier one. What cannot be read leaves it as it was: Cilium writes its settings
    /// again when its agent starts, and how packets go does not change by that.
    pub(crate) fn after(self, before: Option<&Self>) -> Self {
        let on = if self.is_unknown {
            before.is_some_and(|before| before.on)
        } else {
            self.on
        };
        Self { on, ..self }
    }
}

/// Decides for this node as it is now. Blocks for less than a millisecond.
pub(crate) fn decide(choice: MasqueradeChoice) -> Decision {
    let config = fs::read_to_string(Path::new(CILIUM_CONFIG));
    let links = fs::read_to_string(LINKS).unwrap_or_default();
    decide_from(choice, config, &links)
}

fn decide_from(choice: MasqueradeChoice, config: io::Result<String>, links: &str) -> Decision {
    let decided = |on, reason: &str| Decision {
        on,
        reason: reason.to_owned(),
        is_unknown: false,
    };
    match choice {
        MasqueradeChoice::Always => return decided(true, "--masquerade=always"),
        MasqueradeChoice::Never => return decided(false, "--masquerade=never"),
        MasqueradeChoice::Auto => {}
    }
    let mut links = links.lines().filter_map(|line| line.split_once(':'));
    let has_link = links.any(|(name, _)| name.trim() == CILIUM_LINK);
    let unknown = match config {
        Ok(text) => match has_legacy_routing(&text) {
            Some(true) => return decided(false, "Cilium routes replies through netfilter"),
            Some(false) => {
                let reason = "Cilium takes replies past netfilter (BPF host routing)";
                return decided(true, reason);
            }
            None => format!("{CILIUM_CONFIG} does not have EnableHostLegacyRouting"),
        },
        Err(_) if !has_link => return decided(false, "there is no Cilium on this node"),
        Err(error) => format!("{CILIUM_CONFIG}: {error}"),
    };
    Decision {
        on: false,
        reason: format!(
            "the routing mode of Cilium cannot be read ({unknown}): with BPF host routing no client outside \
             the node gets an answer; install overlays/cilium, or set --masquerade"
        ),
        is_unknown: true,
    }
}

/// Returns `EnableHostLegacyRouting` of Cilium's settings; None where it is missing.
fn has_legacy_routing(config: &str) -> Option<bool> {
    let config: Value = serde_json::from_str(config).ok()?;
    // Cilium 1.20 keeps the settings that it may change while it starts in a part of their own
    [&config, &config["UnsafeDaemonConfigOption"]]
        .into_iter()
        .find_map(|part| part["EnableHostLegacyRouting"].as_bool())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `/proc/net/dev` lists them.
    const LINKS: &str = "Inter-|   Receive\n face |bytes\n    lo: 12 1\n  eth0: 7 1\n";

    fn with_cilium() -> String {
        format!("{LINKS}cilium_net: 7 1\ncilium_host: 7 1\n")
    }

    /// As older versions write the file.
    fn config(legacy: &str) -> String {
        format!(
            "{{\"ClusterName\":\"default\",\"EnableBPFMasquerade\":true,\"EnableHostLegacyRouting\":{legacy},\
             \"EnableIPv4\":true}}"
        )
    }

    /// As Cilium 1.20 writes it.
    fn nested(legacy: &str) -> String {
        format!(
            "{{\"UnsafeDaemonConfigOption\":{{\"EnableSocketLBTracing\":true,\"EnableHostLegacyRouting\":{legacy}}},\
             \"BpfDir\":\"/var/lib/cilium/bpf\"}}"
        )
    }

    fn missing() -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn replies_past_netfilter_are_masqueraded() {
        for config in [config("false"), nested("false")] {
            let decision = decide_from(MasqueradeChoice::Auto, Ok(config), &with_cilium());
            assert!(decision.on && !decision.is_unknown, "{decision:?}");
            assert!(decision.reason.contains("BPF host routing"), "{decision:?}");
        }
    }

    #[test]
    fn clients_keep_their_addresses_elsewhere() {
        for (config, links) in [
            (Ok(config("true")), with_cilium()),
            (Ok(nested("true")), with_cilium()),
            (missing(), LINKS.to_owned()),
        ] {
            let decision = decide_from(MasqueradeChoice::Auto, config, &links);
            assert!(!decision.on && !decision.is_unknown, "{decision:?}");
        }
    }

    #[test]
    fn routing_that_cannot_be_read_is_said_with_the_overlay() {
        for config in [
            missing(),
            Ok(config("null")),
            Ok(nested("null")),
            Ok("not JSON".to_owned()),
        ] {
            let decision = decide_from(MasqueradeChoice::Auto, config, &with_cilium());
            assert!(!decision.on && decision.is_unknown, "{decision:?}");
            assert!(decision.reason.contains("overlays/cilium"), "{decision:?}");
        }
    }

    #[test]
    fn settings_that_cannot_be_read_any_more_change_nothing() {
        let decide = |config| decide_from(MasqueradeChoice::Auto, config, &with_cilium());
        let on = decide(Ok(config("false")));
        let unknown = decide(missing()).after(Some(&on));
        assert!(unknown.on && unknown.is_unknown, "{unknown:?}");
        assert!(decide(Ok(nested("null"))).after(Some(&unknown)).on);
        assert!(!decide(Ok(config("true"))).after(Some(&unknown)).on);
        assert!(!decide(missing()).after(None).on);
    }

    #[test]
    fn flag_decides_alone() {
        for (choice, on) in [
            (MasqueradeChoice::Always, true),
            (MasqueradeChoice::Never, false),
        ] {
            for config in [missing(), Ok(config("true")), Ok(config("false"))] {
                let decision = decide_from(choice, config, &with_cilium());
                assert!(decision.on == on && !decision.is_unknown, "{decision:?}");
            }
        }
    }
}
