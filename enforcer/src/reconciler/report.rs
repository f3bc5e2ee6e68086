//! What follows from a read of the rules.

use std::time::{Duration, Instant};

use portmapping_dataplane::{Family, Observed, Obstacle};
use portmapping_enforcer_core::Closed;
use portmapping_shared::contract::EVENT_FORWARD_DROPS;

use super::Reconciler;

impl Reconciler {
    /// `before`: the changes that had started when the read started. A read during which one started is not
    /// used.
    pub(super) fn end_read(&mut self, now: Duration, before: u64, observed: Option<Observed>) {
        self.observing = false;
        let flows = self.drivers.stale_flows.clone();
        let mut repairs = false;
        match observed {
            Some(observed) if before == self.changes => {
                self.report(&observed);
                // known before what was read maps a pod
                self.state.forward_read(now, closed(&observed.obstacles));
                let moved = self.state.host_addresses_read(now, observed.host_addresses);
                // a connection may have begun while its rule was not there, or did not match
                repairs = !observed.intact;
                if moved || repairs || self.expected_mappings.is_none() {
                    flows.found(&observed.mappings);
                }
                let (mappings, intact) = (observed.mappings, observed.intact);
                self.read_again |= !self.state.observed(now, mappings, intact);
            }
            Some(_) => self.read_again = true,
            None => self.state.read_failed(now),
        }
        // a repair is followed by a clearing
        if !repairs && flows.is_due() {
            self.clear_stale_flows();
        }
        self.update_metrics();
    }

    fn report(&mut self, observed: &Observed) {
        self.report_damage(observed);
        if observed.contested {
            self.state.rules_contested();
        }
        if !observed.mappings.is_empty() {
            self.report_obstacles(&observed.obstacles);
        }
    }

    /// Logs and counts rules that another process altered.
    fn report_damage(&mut self, observed: &Observed) {
        let expected = self.expected_mappings.unwrap_or(observed.mappings.len());
        if !observed.intact || observed.mappings.len() != expected {
            self.drivers.metrics.record_damage();
            self.damaged_since.get_or_insert_with(Instant::now);
            tracing::warn!(
                intact = observed.intact,
                found = observed.mappings.len(),
                expected,
                "another process altered our rules; repairing them"
            );
        }
    }

    /// Logs what may keep clients from mapped pods whenever it changes; what is new is an event on the Node
    /// as well.
    fn report_obstacles(&mut self, obstacles: &[Obstacle]) {
        if self.obstacles == obstacles {
            return;
        }
        self.obstacles = obstacles.to_vec();
        if obstacles.is_empty() {
            tracing::info!("nothing that is known keeps clients from mapped pods any more");
            return;
        }
        let texts: Vec<&str> = obstacles.iter().map(|it| it.text.as_str()).collect();
        let note = format!("clients may not reach mapped pods: {}", texts.join("; "));
        tracing::warn!("{note}");
        self.emit_on_node(EVENT_FORWARD_DROPS, note);
    }
}

/// What keeps all clients from mapped pods, as the conditions say it.
pub(crate) fn closed(obstacles: &[Obstacle]) -> Closed {
    let text = |family| {
        let mut closing = obstacles.iter().filter(|it| it.closes == Some(family));
        let text = &closing.next()?.text;
        Some(format!("no client reaches mapped pods: {text}"))
    };
    Closed {
        ipv4: text(Family::V4),
        ipv6: text(Family::V6),
    }
}
