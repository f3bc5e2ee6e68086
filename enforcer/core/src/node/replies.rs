//! Mapped ports whose connections get no reply.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portmapping_shared::Mapping;

use super::NodeState;
use crate::action::EventKind;

/// How long all connections to a port are unanswered before that is an event. The kernel forgets an
/// unanswered connection after two minutes.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// Since when ports are silent.
#[derive(Debug, Default)]
pub(super) struct Silences(BTreeMap<Mapping, Silence>);

#[derive(Debug)]
struct Silence {
    since: Duration,
    is_emitted: bool,
}

impl NodeState {
    /// The dataplane read which mappings have connections from two sources or more, all unanswered.
    /// Nothing is changed: a `NetworkPolicy` that drops the clients looks the same.
    pub fn replies_read(&mut self, now: Duration, silent: &BTreeSet<Mapping>) {
        let known = &mut self.replies.0;
        known.retain(|mapping, _| silent.contains(mapping));
        for mapping in silent {
            known.entry(mapping.clone()).or_insert(Silence {
                since: now,
                is_emitted: false,
            });
        }
        let due = known.iter_mut().filter(|(_, silence)| {
            !silence.is_emitted && now.saturating_sub(silence.since) >= SILENT_FOR
        });
        let due: Vec<Mapping> = due
            .map(|(mapping, silence)| {
                silence.is_emitted = true;
                mapping.clone()
            })
            .collect();
        for mapping in due {
            let note = format!(
                "no TCP connection to host port {} gets a reply, from two clients or more: a NetworkPolicy or \
                 a firewall drops them, or the replies leave the node past netfilter (the enforcer's \
                 --masquerade=always cures that)",
                mapping.host_port
            );
            self.emit(&mapping.owner, EventKind::NoReplies, note);
        }
    }
}
