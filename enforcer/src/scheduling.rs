//! Asks the scheduler for short turns that come soon. A start takes little work that goes through
//! several hands (the result is seen, the program is fed, the kernel answers, the patch is sent), and
//! on a node that starts containers each of them would wait for a turn of somebody else.
//!
//! Linux 6.12 and later take the length of a task's turn with `sched_setattr(2)` and serve the shorter
//! first (`Documentation/scheduler/sched-eevdf.rst`). It gives no larger share of the processor and
//! asks for no privilege. Older kernels take the call, and change nothing.

use std::io;
use std::mem::size_of;
use std::time::Duration;

use nix::libc::{SCHED_FLAG_KEEP_POLICY, SYS_sched_setattr, c_uint, sched_attr, syscall};
use rustix::process::{Pid, getpriority_process};

/// The shortest turn that the kernel gives.
const TURN: Duration = Duration::from_micros(100);
const NO_FLAGS: c_uint = 0;

/// Makes the turns of a thread short (None: of the calling one), and those of all threads and programs
/// that it starts from now on: to be called before there is any.
pub fn take_short_turns(thread: Option<Pid>) -> io::Result<()> {
    // the kernel sets it as well, and a program may not go below the one it has
    let niceness = getpriority_process(thread)?;
    let attributes = sched_attr {
        size: u32::try_from(size_of::<sched_attr>()).map_err(io::Error::other)?,
        sched_policy: 0,
        sched_flags: u64::try_from(SCHED_FLAG_KEEP_POLICY).map_err(io::Error::other)?,
        sched_nice: niceness,
        sched_priority: 0,
        sched_runtime: u64::try_from(TURN.as_nanos()).map_err(io::Error::other)?,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of the structure, which lives until it has returned
    #[allow(unsafe_code)] // nobody wraps it
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

    /// The length of a turn in nanoseconds, as the kernel shows it.
    fn turn(sched: &str) -> Option<u128> {
        let line = sched.lines().find(|line| line.starts_with("se.slice"))?;
        line.split(':').nth(1)?.trim().parse().ok()
    }

    #[test]
    fn turns_are_short_in_threads_and_programs_started_later() {
        let seen = thread::spawn(|| {
            take_short_turns(None).unwrap();
            let own = fs::read_to_string("/proc/thread-self/sched").unwrap();
            let thread = thread::spawn(|| fs::read_to_string("/proc/thread-self/sched").unwrap());
            let program = Command::new("cat").arg("/proc/self/sched").output();
            let program = String::from_utf8(program.unwrap().stdout).unwrap();
            [own, thread.join().unwrap(), program]
        });
        let untouched = fs::read_to_string("/proc/thread-self/sched").unwrap();
        for sched in seen.join().unwrap() {
            // kernels before 6.12 do not show it, as they do not heed it
            assert_eq!(turn(&sched), turn(&untouched).map(|_| TURN.as_nanos()));
        }
    }

    #[test]
    fn a_niceness_stays() {
        thread::spawn(|| {
            let niceness = rustix::process::nice(7).unwrap();
            take_short_turns(None).unwrap();
            assert_eq!(getpriority_process(None).unwrap(), niceness);
        })
        .join()
        .unwrap();
    }
}
