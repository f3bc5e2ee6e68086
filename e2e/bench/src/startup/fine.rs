//! Makes file times exact to half a millisecond. The kernel gives a file the time of its last tick,
//! which is up to 4 ms ago. Since Linux 6.13, that time is never before the latest fine-grained
//! time. A file gets a fine-grained time when it changes after its time was read
//! (`Documentation/filesystems/multigrain-ts.rst`). So this repeatedly reads the time of a file and
//! changes the file.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, Timespec, Timestamps, UTIME_NOW, fstat, futimens, memfd_create};

use super::priority;

/// Pause between two changes.
const EVERY: Duration = Duration::from_micros(500);

/// Keeps file times fine-grained until it is dropped; before Linux 6.13 it has no effect.
pub(super) struct FineTimes {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl FineTimes {
    pub(super) fn keep() -> Result<Self> {
        let file = memfd_create("times", MemfdFlags::CLOEXEC).context("create a file in memory")?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            priority::favour_this_thread()?;
            while !until.load(Ordering::Relaxed) {
                read_and_change(&file).context("change a file in memory")?;
                thread::sleep(EVERY);
            }
            Ok(())
        });
        let thread = Some(thread);
        Ok(Self { stop, thread })
    }

    /// Ends the thread; returns an error if it failed.
    pub(super) fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => anyhow::bail!("the thread that keeps times fine panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for FineTimes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn read_and_change(file: &OwnedFd) -> io::Result<()> {
    fstat(file)?;
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    futimens(
        file,
        &Timestamps {
            last_access: now,
            last_modification: now,
        },
    )?;
    Ok(())
}
