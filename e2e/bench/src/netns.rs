//! Network namespaces without names. The kernel removes a namespace and everything in it when the
//! last process that has it open exits, in any way.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use e2e::process;

/// Longest time for one set-up command.
const LIMIT: Duration = Duration::from_mins(3);

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

    /// Moves the calling thread into the namespace permanently.
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

    /// Runs a shell script inside and returns its output.
    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        let mut sh = process::command("sh");
        sh.args(["-ec", script]);
        self.run(move || process::run(&mut sh, LIMIT))
    }

    /// Writes a sysctl; `/proc/sys/net` shows the namespace of the reading thread.
    pub(crate) fn set(&self, sysctl: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{sysctl}");
        self.run(|| fs::write(&path, value).with_context(|| format!("write {value} to {path}")))
    }

    /// Runs a program inside with this input, and returns its output.
    pub(crate) fn feed(&self, command: &mut Command, input: &[u8]) -> Result<String> {
        self.run(|| fed(command, input))
    }

    /// Returns a path by which programs find it while this process runs.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Returns a command inside that ends with the thread that starts it, so that no process
    /// survives a killed benchmark.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = process::command("nsenter");
        command.arg(format!("--net={}", self.path()));
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        command.arg(program);
        command
    }
}

/// Runs a program to its end without polling it, because polling would add to its time.
pub(crate) fn fed(command: &mut Command, input: &[u8]) -> Result<String> {
    let text = process::describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("run {text}"))?;
    let group = Pid::from_raw(i32::try_from(child.id()).context("pid out of range")?);
    let mut stdin = child.stdin.take().context("no pipe to a program")?;
    let (ended, end) = mpsc::channel::<()>();
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            // if a program does not read its input, its output says why
            let _ = stdin.write_all(input);
        });
        scope.spawn(move || {
            if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                // fails only if the program has exited already
                let _ = killpg(group, Signal::SIGKILL);
            }
        });
        let output = child.wait_with_output();
        drop(ended);
        output
    });
    let output = output.with_context(|| format!("wait for {text}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let (stdout, stderr) = (head(&stdout), head(&stderr));
        bail!(
            "{text} failed ({}): {stderr}{stdout}",
            process::ending(output.status)
        );
    }
    Ok(stdout)
}

/// Returns the beginning of an output, because later errors usually follow from the first.
fn head(text: &str) -> &str {
    let to = text
        .char_indices()
        .nth(600)
        .map_or(text.len(), |(at, _)| at);
    text.get(..to).unwrap_or(text)
}
