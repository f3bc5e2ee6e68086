//! Notices when another program changes `nf_tables`: our rules have to be read then.
//!
//! Every commit gives the tables of the namespace a new generation, which the kernel announces.
//! Only the announcement of the generation is received, one per commit, so that a large commit does
//! not fill the queue. It does not say what has changed; a read finds out. Reads are paced: the first
//! follows at once, the others take a small part of the time. Repeated damage to our rules is
//! repaired with back-off.
//!
//! iptables-legacy announces nothing: there only the periodic check sees damage.

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
use pace::Pace;

/// How many of our changes are remembered, for announcements that are still to come.
const OWN: usize = 64;
/// How many announcements may wait for the end of a change. Beyond that our rules are read once more.
const PENDING: usize = 256;

/// What is known of changes. The driver, which reports what it does, and the listener share it.
#[derive(Clone, Debug, Default)]
pub struct ChangeMonitor(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// A change of ours is under way: who made a generation is known at its end.
    changing: bool,
    pending: Vec<u32>,
    /// Generations that changes of ours made.
    own: VecDeque<RangeInclusive<u32>>,
    /// The socket that our changes are sent from, where they are sent by this process.
    own_port: Option<u32>,
    /// The generation at the last read.
    seen: Option<u32>,
    /// The last generation that another program made and that was not read yet.
    foreign: Option<u32>,
    /// Announcements were lost.
    lost: bool,
    pace: Pace,
}

impl ChangeMonitor {
    /// Commits sent from this netlink port are ours.
    pub fn own_port(&self, port: u32) {
        self.0.state.lock().own_port = Some(port);
    }

    /// Programs that commit for us are about to run.
    pub fn begin_change(&self) {
        self.0.state.lock().changing = true;
    }

    /// The programs have ended. The generations between are ours if there are as many as commits were
    /// made. Where a generation or the number is not known, they count as made by another program.
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
        self.0.news.notify_one();
    }

    /// Records a read of the rules: what `generation` and all before it did is known. `took` is how long
    /// that lasted, `damaged` whether rules of ours were found altered.
    pub fn record_read(&self, generation: Option<u32>, took: Duration, damaged: bool) {
        let mut state = self.0.state.lock();
        state.seen = generation.or(state.seen);
        if state.foreign <= state.seen {
            state.foreign = None;
        }
        state.pace.record_read(Instant::now(), took, damaged);
        drop(state);
        self.0.news.notify_one();
    }

    /// An announcement came.
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
        self.0.news.notify_one();
    }

    /// Announcements were lost: anything may have happened.
    fn missed(&self) {
        self.0.state.lock().lost = true;
        self.0.news.notify_one();
    }

    /// Raises the number in `hints` whenever it is time to read, until the token is cancelled.
    pub async fn hint(&self, hints: watch::Sender<u64>, token: CancellationToken) {
        loop {
            let due = self.0.state.lock().due();
            let news = self.0.news.notified();
            // all arms are cancel-safe: what is due is asked for again
            tokio::select! {
                () = token.cancelled() => return,
                () = news => {}
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

    /// When to read; None while there is no reason to.
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
