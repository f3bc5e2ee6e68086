//! Which file tells of which sandbox, so that a removed file's sandbox is known; and which was written
//! after which, whatever the clock did in between.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use portmapping_enforcer_core::{Sandbox, SandboxUpdate};

/// What the last reading of one file gave.
#[derive(Debug, Default)]
struct Entry {
    sandbox: Option<Sandbox>,
    /// When the file says that it was written.
    stamp: Duration,
    complained: bool,
}

/// What the reading of a file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The sandbox of a pod.
    Sandbox(Sandbox),
    /// A file that is none of our business: the loopback's, a further network's.
    Other,
    /// A file that cannot be used, and why.
    Unusable(String),
    /// The file is gone again; its removal will be told.
    Gone,
}

/// All files that were seen and are still there.
#[derive(Debug, Default)]
pub struct Known {
    files: HashMap<OsString, Entry>,
    /// When the latest of all sandboxes counts as written.
    latest: Duration,
}

impl Known {
    /// A file was read: what is new. Files are told of in the order in which they were written, which is
    /// more than their times say: where the clock was set back, a later one has an earlier time.
    pub fn read(&mut self, name: &OsStr, reading: Reading) -> Vec<SandboxUpdate> {
        if reading == Reading::Gone {
            return Vec::new();
        }
        let entry = self.files.entry(name.to_owned()).or_default();
        let now = match reading {
            // it may be half written, with the rest to come; what it said before still holds
            Reading::Unusable(reason) => {
                entry.complain(name, &reason);
                return Vec::new();
            }
            Reading::Sandbox(sandbox) => Some(entry.date(sandbox, &mut self.latest)),
            Reading::Other | Reading::Gone => None,
        };
        entry.complained = false;
        let before = std::mem::replace(&mut entry.sandbox, now.clone());
        let gone = before.filter(|before| now.as_ref().is_none_or(|now| now.id != before.id));
        let gone = gone.map(|before| SandboxUpdate::Down(before.id));
        gone.into_iter().chain(now.map(SandboxUpdate::Up)).collect()
    }

    /// A file was removed: its sandbox is gone. Where two files tell of one sandbox (Multus writes
    /// one and the network that it delegates to another), the first removal counts: by then the
    /// address is free.
    pub fn removed(&mut self, name: &OsStr) -> Option<SandboxUpdate> {
        let sandbox = self.files.remove(name)?.sandbox?;
        Some(SandboxUpdate::Down(sandbox.id))
    }

    /// All files there are: all sandboxes there are.
    pub fn listed(&mut self, mut readings: Vec<(OsString, Reading)>) -> SandboxUpdate {
        // nothing else tells of their order
        readings.sort_by_key(|(_, reading)| match reading {
            Reading::Sandbox(sandbox) => sandbox.written,
            _ => Duration::ZERO,
        });
        let mut before = std::mem::take(&mut self.files);
        for (name, reading) in readings {
            if let Some(entry) = before.remove(&name) {
                self.files.insert(name.clone(), entry);
            }
            // one by one they would be news; together they are the list
            self.read(&name, reading);
        }
        let entries = self.files.values();
        SandboxUpdate::Listed(entries.filter_map(|entry| entry.sandbox.clone()).collect())
    }
}

impl Entry {
    /// Dates what was read of a file: as it was if it has not changed, else after all that was read before.
    fn date(&mut self, mut sandbox: Sandbox, latest: &mut Duration) -> Sandbox {
        let stamp = std::mem::replace(&mut self.stamp, sandbox.written);
        if let Some(before) = &self.sandbox
            && stamp == sandbox.written
        {
            sandbox.written = before.written;
            if sandbox == *before {
                return sandbox;
            }
            sandbox.written = stamp;
        }
        if sandbox.written < *latest {
            sandbox.written = latest.saturating_add(Duration::from_nanos(1));
        }
        *latest = sandbox.written;
        sandbox
    }

    fn complain(&mut self, name: &OsStr, reason: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(
                file = ?name, reason,
                "a CNI result cannot be used; its pod is mapped when its status shows the address"
            );
        }
    }
}

#[cfg(test)]
mod tests;
