//! Which file belongs to which sandbox, so that the sandbox of a removed file is known; and the order
//! in which the files were written, also when the clock was set back in between.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use portmapping_enforcer_core::{Sandbox, SandboxUpdate};

/// The last reading of one file.
#[derive(Debug, Default)]
struct ResultFile {
    sandbox: Option<Sandbox>,
    /// Modification time of the file.
    stamp: Duration,
    warned: bool,
}

/// The result of reading a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// It describes the sandbox of a pod.
    Sandbox(Sandbox),
    /// It describes another interface: the loopback's, or a further network's.
    Other,
    /// It cannot be used, and why.
    Unusable(String),
    /// It was removed; the directory watch reports that too.
    Gone,
}

/// All files that were read and still exist.
#[derive(Debug, Default)]
pub(super) struct ResultFiles {
    files: HashMap<OsString, ResultFile>,
    /// The latest write time given to a sandbox.
    latest: Duration,
}

impl ResultFiles {
    /// Records the reading of a file; returns the updates. Call it in the order in which the files were
    /// written: if the clock was set back, a later file has an earlier time.
    pub(super) fn read(&mut self, name: &OsStr, reading: Reading) -> Vec<SandboxUpdate> {
        if reading == Reading::Gone {
            return Vec::new();
        }
        let entry = self.files.entry(name.to_owned()).or_default();
        let now = match reading {
            // it may still be incomplete; what it said before stays valid
            Reading::Unusable(reason) => {
                entry.warn_once(name, &reason);
                return Vec::new();
            }
            Reading::Sandbox(sandbox) => Some(entry.date(sandbox, &mut self.latest)),
            Reading::Other | Reading::Gone => None,
        };
        entry.warned = false;
        let before = std::mem::replace(&mut entry.sandbox, now.clone());
        let gone = before.filter(|before| now.as_ref().is_none_or(|now| now.id != before.id));
        let gone = gone.map(|before| SandboxUpdate::Down(before.id));
        gone.into_iter().chain(now.map(SandboxUpdate::Up)).collect()
    }

    /// Records a removed file: its sandbox is gone. If two files describe one sandbox (Multus writes
    /// one, and the network that it delegates to another), the first removal counts: the address is
    /// free by then.
    pub(super) fn removed(&mut self, name: &OsStr) -> Option<SandboxUpdate> {
        let sandbox = self.files.remove(name)?.sandbox?;
        Some(SandboxUpdate::Down(sandbox.id))
    }

    /// Records a complete list of files; returns the complete list of sandboxes.
    pub(super) fn listed(&mut self, mut readings: Vec<(OsString, Reading)>) -> SandboxUpdate {
        // their order is known from their times only
        readings.sort_by_key(|(_, reading)| match reading {
            Reading::Sandbox(sandbox) => sandbox.written,
            _ => Duration::ZERO,
        });
        let mut before = std::mem::take(&mut self.files);
        for (name, reading) in readings {
            if let Some(entry) = before.remove(&name) {
                self.files.insert(name.clone(), entry);
            }
            // the single updates are not needed: together they are the list
            self.read(&name, reading);
        }
        let entries = self.files.values();
        SandboxUpdate::Listed(entries.filter_map(|entry| entry.sandbox.clone()).collect())
    }
}

impl ResultFile {
    /// Sets the write time of what was read: unchanged if the file is unchanged, else later than every
    /// file read before.
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

    fn warn_once(&mut self, name: &OsStr, reason: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                file = ?name, reason,
                "cannot use a CNI result; its pod is mapped once its status has an address"
            );
        }
    }
}

#[cfg(test)]
mod tests;
