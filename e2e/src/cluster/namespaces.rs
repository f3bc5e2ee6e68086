//! Starting a process as pid 1 of fresh namespaces, entering them from outside, and reaping inside.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::process;

/// What the thread that starts a first process does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// It stays for good: a parent-death signal is bound to the thread, not to the whole program.
    Stays,
    /// It ends; otherwise it would keep the new namespaces alive after their last process.
    Ends,
}

/// Starts `command` as the first process of new PID, mount, network, UTS and IPC namespaces.
///
/// unshare changes the calling thread only, so this happens in a thread of its own and the caller
/// stays where it is.
pub(crate) fn spawn(mut command: Command, parent: Parent) -> Result<Child> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let flags = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC;
        let child = unshare(flags)
            .context("unshare namespaces (needs root)")
            .and_then(|()| {
                command
                    .spawn()
                    .context("start the first process of a namespace")
            });
        drop(command); // and with it our copies of the pipes handed over
        let _ = sender.send(child);
        if parent == Parent::Stays {
            loop {
                thread::park();
            }
        }
    });
    receiver
        .recv()
        .map_err(|_| anyhow!("the thread that starts a namespace ended"))?
}

/// The body of a namespace's pid 1: reaps orphans until `main` ends; returns its exit code.
/// It must have no other child: the wait for any process would consume that child's status.
pub(crate) fn reap(main: &Child) -> Result<i32> {
    let main = Pid::from_raw(i32::try_from(main.id()).context("pid out of range")?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Ok(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                return Ok(128 + signal as i32);
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for any child"),
        }
    }
}

/// nsenter into all namespaces of `pid` (a pid as this process sees it).
pub(crate) fn enter(pid: u32, program: impl AsRef<Path>) -> Command {
    let mut command = process::command("nsenter");
    command.args([
        "-t",
        &pid.to_string(),
        "-m",
        "-n",
        "-p",
        "-u",
        "-i",
        "-C",
        "--",
    ]);
    command.arg(program.as_ref());
    command
}

/// Lifts the soft limit of open files to the hard one; everything started later inherits it.
pub(crate) fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")
}
