//! Detects changes of `nf_tables` by other programs, after which our rules must be read again.
//!
//! Each commit gives the tables of the namespace a new generation, and the kernel announces it. The
//! monitor receives only this announcement, one per commit, so that a large commit does not fill
//! the queue. The announcement does not say what changed; a read of the rules shows it. The first
//! read follows at once, and later reads take at most a tenth of the time. Repeated damage to our
//! rules is repaired with back-off.
//!
//! iptables-legacy announces nothing, so only the periodic check finds damage there.

mod listen;
mod pace;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use listen::GenerationSocket;
pub(crate) use listen::current_generation;
use pace::Pace;

/// How many of our changes are kept until their announcements arrive.
const OWN: usize = 64;
/// How many announcements may wait for the end of a change. If there are more, the rules are read
/// once more.
const PENDING: usize = 256;

/// Tells our own changes from those of other programs. The driver reports its changes to it, and
/// the listener reports the kernel's announcements.
#[derive(Clone, Debug, Default)]
pub struct ChangeMonitor(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a change of ours is running. Until its end it is not known who made a generation.
    changing: bool,
    pending: Vec<u32>,
    /// Generations that our changes made.
    own: VecDeque<RangeInclusive<u32>>,
    /// The netlink port from which this process sends changes; None if programs make them.
    own_port: Option<u32>,
    /// The generation at the last read.
    seen: Option<u32>,
    /// The last generation that another program made and that is not read yet.
    foreign: Option<u32>,
    /// Whether announcements were lost.
    lost: bool,
    pace: Pace,
}

impl ChangeMonitor {
    /// Sets the netlink port of this process: commits from it are ours.
    pub fn own_port(&self, port: u32) {
        self.0.state.lock().own_port = Some(port);
    }

    /// Records that programs which commit for us are about to run.
    pub fn begin_change(&self) {
        self.0.state.lock().changing = true;
    }

    /// Records that the programs have ended. The generations from `before` to `after` are ours if
    /// there are as many as `commits`. If one of the three is unknown, they count as made by
    /// another program.
    pub fn end_change(&self, before: Option<u32>, after: Option<u32>, commits: Option<u32>) {
        let mut state = self.0.state.lock();
        state.changing = false;
        if let (Some(before), Some(after), Some(commits)) = (before, after, commits)
            && commits > 0
            && before.checked_add(commits) == Some(after)
        {
            state.own.push_back(before + 1..=after);
            if state.own.len() > OWN {
                state.own.pop_front();
            }
        }
        for generation in std::mem::take(&mut state.pending) {
            state.judge(generation);
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Records a read of the rules, which covers `generation` and all before it. `took` is how long
    /// the read lasted; `damaged` says whether it found our rules altered.
    pub fn record_read(&self, generation: Option<u32>, took: Duration, damaged: bool) {
        let mut state = self.0.state.lock();
        state.seen = generation.or(state.seen);
        if state.foreign <= state.seen {
            state.foreign = None;
        }
        state.pace.record_read(Instant::now(), took, damaged);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Records an announcement.
    fn heard(&self, generation: u32, port: u32) {
        let mut state = self.0.state.lock();
        if state.own_port == Some(port) {
            return;
        }
        if !state.changing {
            state.judge(generation);
        } else if state.pending.len() < PENDING {
            state.pending.push(generation);
        } else {
            state.lost = true;
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Records that announcements were lost: any rule may have changed.
    fn missed(&self) {
        self.0.state.lock().lost = true;
        self.0.changed.notify_one();
    }

    /// Increments the number in `hints` each time the rules should be read, until the token is
    /// cancelled.
    pub async fn hint(&self, hints: watch::Sender<u64>, token: CancellationToken) {
        loop {
            let due = self.0.state.lock().due();
            let changed = self.0.changed.notified();
            // all arms are cancel-safe: each round asks again what is due
            tokio::select! {
                () = token.cancelled() => return,
                () = changed => {}
                () = sleep_until(due), if due.is_some() => {
                    self.0.state.lock().hinted();
                    hints.send_modify(|count| *count += 1);
                }
            }
        }
    }
}

impl State {
    fn judge(&mut self, generation: u32) {
        let own = self.own.iter().any(|range| range.contains(&generation));
        let seen = self.seen.is_some_and(|seen| generation <= seen);
        if !own && !seen {
            self.foreign = self.foreign.max(Some(generation));
        }
    }

    /// Returns when to read; None without a reason to.
    fn due(&self) -> Option<Instant> {
        let something = (self.foreign.is_some() || self.lost) && !self.changing;
        something.then(|| self.pace.next(Instant::now()))
    }

    fn hinted(&mut self) {
        self.foreign = None;
        self.lost = false;
        self.pace.hinted(Instant::now());
    }
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

#[cfg(test)]
mod tests;
