//! Asks the scheduler for short time slices. Mapping a pod takes several short steps (read the result,
//! change the rules, send the patch), and on a node that starts containers each step would wait for
//! the time slices of other processes.
//!
//! Linux 6.12 and later set the length of a task's time slice with `sched_setattr(2)` and run shorter
//! slices first (`Documentation/scheduler/sched-eevdf.rst`). The share of the processor stays the same,
//! and no privilege is needed. Older kernels accept the call and ignore the slice.

use std::io;
use std::mem::size_of;
use std::time::Duration;

use nix::libc::{SCHED_FLAG_KEEP_POLICY, SYS_sched_setattr, c_uint, sched_attr, syscall};
use rustix::process::{Pid, getpriority_process};

/// The shortest time slice that the kernel accepts.
const SLICE: Duration = Duration::from_micros(100);
const NO_FLAGS: c_uint = 0;

/// Makes the time slices of a thread short (None: of the calling thread), and those of all threads and
/// programs that it starts later. Call it before any is started.
pub fn use_short_slices(thread: Option<Pid>) -> io::Result<()> {
    // the call sets the niceness too, and lowering it needs a privilege: keep it
    let niceness = getpriority_process(thread)?;
    let attributes = sched_attr {
        size: u32::try_from(size_of::<sched_attr>()).map_err(io::Error::other)?,
        sched_policy: 0,
        sched_flags: u64::try_from(SCHED_FLAG_KEEP_POLICY).map_err(io::Error::other)?,
        sched_nice: niceness,
        sched_priority: 0,
        sched_runtime: u64::try_from(SLICE.as_nanos()).map_err(io::Error::other)?,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of the structure, which lives until it has returned
    #[allow(unsafe_code)] // neither nix nor rustix has a wrapper
    let answer = unsafe {
        let thread = Pid::as_raw(thread);
        syscall(SYS_sched_setattr, thread, &raw const attributes, NO_FLAGS)
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// The time slice in nanoseconds, as the kernel shows it.
    fn slice_of(sched: &str) -> Option<u128> {
        let line = sched.lines().find(|line| line.starts_with("se.slice"))?;
        line.split(':').nth(1)?.trim().parse().ok()
    }

    #[test]
    fn slices_are_short_in_threads_and_programs_started_later() {
        let seen = thread::spawn(|| {
            use_short_slices(None).unwrap();
            let own = fs::read_to_string("/proc/thread-self/sched").unwrap();
            let thread = thread::spawn(|| fs::read_to_string("/proc/thread-self/sched").unwrap());
            let program = Command::new("cat").arg("/proc/self/sched").output();
            let program = String::from_utf8(program.unwrap().stdout).unwrap();
            [own, thread.join().unwrap(), program]
        });
        let untouched = fs::read_to_string("/proc/thread-self/sched").unwrap();
        for sched in seen.join().unwrap() {
            // kernels before 6.12 neither use nor show it
            assert_eq!(
                slice_of(&sched),
                slice_of(&untouched).map(|_| SLICE.as_nanos())
            );
        }
    }

    #[test]
    fn niceness_stays() {
        thread::spawn(|| {
            let niceness = rustix::process::nice(7).unwrap();
            use_short_slices(None).unwrap();
            assert_eq!(getpriority_process(None).unwrap(), niceness);
        })
        .join()
        .unwrap();
    }
}
