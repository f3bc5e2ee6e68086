//! Network namespaces without names: the kernel removes them, and all that is in them, with the
//! last process that has them open, however that process ends.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process;

/// Longest time that setting something up may take.
const LIMIT: Duration = Duration::from_mins(1);

/// A network namespace that ends with this value and the threads inside.
#[derive(Debug)]
pub(crate) struct Netns(File);

impl Netns {
    /// A namespace with nothing but its loopback interface.
    pub(crate) fn new() -> Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("make a network namespace (needs root: run the command with sudo)")?;
            File::open("/proc/thread-self/ns/net").context("open the new network namespace")
        };
        let file = thread::spawn(make).join();
        let netns = Self(file.map_err(|_| anyhow!("a thread that makes a namespace ended"))??);
        netns.sh("ip link set lo up")?;
        Ok(netns)
    }

    /// Moves the calling thread in, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// Runs `work` on a thread inside; sockets and processes made there stay inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                work()
            });
            let ended = || anyhow!("a thread in a network namespace ended early");
            inside.join().map_err(|_| ended())?
        })
    }

    /// Runs a shell script inside; its output.
    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        let mut sh = process::command("sh");
        sh.args(["-ec", script]);
        self.run(move || process::run(&mut sh, LIMIT))
    }

    /// A path by which programs find it for as long as this process lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A command inside that dies with the thread that starts it, so that nothing outlives a
    /// benchmark which is killed.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = process::command("nsenter");
        command.arg(format!("--net={}", self.path()));
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        command.arg(program);
        command
    }
}
