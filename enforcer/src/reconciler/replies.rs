//! Reads which connections to mapped ports get no reply: one read at a time, and rarely.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_runtime::deadline::chain;
use portmapping_shared::Mapping;

use super::{Finished, Reconciler};

/// Shortest time between the starts of two reads. The kernel forgets an unanswered connection after two
/// minutes.
const EVERY: Duration = Duration::from_secs(10);
/// The pause after a read lasts this many times as long as the read took: kernels before 5.15 send all
/// TCP connections of the node, and reading them may take 1 % of a CPU.
const REST: u32 = 99;

/// When connections are read.
#[derive(Debug, Default)]
pub(super) struct ReplyReads {
    /// The start of the read that runs.
    begun: Option<Duration>,
    /// The earliest start of the next one.
    next: Duration,
}

impl ReplyReads {
    /// Returns whether a read starts now.
    fn begin(&mut self, now: Duration) -> bool {
        let starts = self.begun.is_none() && now >= self.next;
        if starts {
            self.begun = Some(now);
        }
        starts
    }

    /// The read has ended.
    fn end(&mut self, now: Duration) {
        if let Some(begun) = self.begun.take() {
            let took = now.saturating_sub(begun);
            self.next = (begun + EVERY).max(now + took * REST);
        }
    }
}

impl Reconciler {
    /// Reads the rules back and, unless it is too early, which connections get no reply.
    pub(super) fn check(&mut self) {
        self.observe();
        if !self.reply_reads.begin(self.now()) {
            return;
        }
        let flows = self.drivers.stale_flows.clone();
        let metrics = self.drivers.metrics.clone();
        let mappings = self.state.desired();
        self.tasks.spawn_blocking(move || {
            let unanswered = flows.unanswered(&mappings);
            metrics.record_call("read_flows", unanswered.is_ok());
            Finished::Replies(match unanswered {
                Ok(unanswered) => {
                    metrics.set_unanswered(unanswered.flows);
                    Some(unanswered.mappings)
                }
                Err(error) => {
                    tracing::debug!(
                        error = chain(&error),
                        "the connections to mapped ports cannot be listed; trying again later"
                    );
                    None
                }
            })
        });
    }

    /// A read has ended; it found the mappings `silent`, or failed.
    pub(super) fn end_reply_read(&mut self, silent: Option<&BTreeSet<Mapping>>) {
        let now = self.now();
        self.reply_reads.end(now);
        if let Some(silent) = silent {
            self.state.replies_read(now, silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn one_read_runs_at_a_time_and_none_earlier_than_10_s_after_the_last() {
        let mut reads = ReplyReads::default();
        assert!(reads.begin(S));
        assert!(!reads.begin(60 * S), "a second one at the same time");
        reads.end(S);
        assert!(!reads.begin(6 * S));
        assert!(reads.begin(11 * S));
    }

    #[test]
    fn reads_that_take_long_are_rare() {
        let mut reads = ReplyReads::default();
        assert!(reads.begin(S));
        reads.end(2 * S);
        assert!(!reads.begin(100 * S));
        assert!(reads.begin(101 * S));
    }
}
