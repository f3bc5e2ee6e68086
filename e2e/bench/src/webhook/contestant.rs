//! The servers that are compared. Each is a process; the client has a different core.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use e2e::process;

/// The core of the servers; the client has another.
const CORE: usize = 0;

/// Which server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// portmapping's webhook.
    Ours,
    /// controller-runtime with a hand-written patch.
    HandWritten,
    /// controller-runtime with a patch from the comparison of whole objects.
    WholeObject,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Ours, Self::HandWritten, Self::WholeObject];

    /// Returns the name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "portmapping",
            Self::HandWritten => "controller-runtime, hand-written patch",
            Self::WholeObject => "controller-runtime, whole-object patch",
        }
    }
}

/// The paths of programs and certificates.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) ours: PathBuf,
    pub(super) peer: PathBuf,
    /// The folder with tls.crt and tls.key, the same for all servers.
    pub(super) tls: PathBuf,
}

/// A running server.
#[derive(Debug)]
pub(super) struct Contestant {
    child: Child,
    pub(super) address: SocketAddr,
    /// When the start of the process was requested.
    pub(super) begun: Instant,
}

impl Contestant {
    pub(super) fn start(kind: Kind, stage: &Stage) -> Result<Self> {
        let address = free_address()?;
        let port = address.port().to_string();
        let mut command = match kind {
            Kind::Ours => {
                let mut command = process::command(&stage.ours);
                command.args(["--admin-listen", "127.0.0.1:0", "--drain-delay", "0s"]);
                command.arg("--listen").arg(address.to_string());
                command.arg("--log").arg("warn");
                command
            }
            Kind::HandWritten | Kind::WholeObject => {
                let mut command = process::command(&stage.peer);
                command.args(["-port", &port]);
                if kind == Kind::WholeObject {
                    command.arg("-whole-object");
                }
                command
            }
        };
        command.arg("--tls-dir").arg(&stage.tls);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // a child inherits the cores of the thread that starts it
        let spawned = thread::spawn(move || {
            pin(CORE)?;
            let begun = Instant::now();
            let child = command.spawn().context("start a server to measure")?;
            anyhow::Ok((child, begun))
        });
        let Ok(spawned) = spawned.join() else {
            bail!("the thread that starts servers panicked");
        };
        let (child, begun) = spawned?;
        Ok(Self {
            child,
            address,
            begun,
        })
    }

    /// Returns the processor time so far, user and system.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cpu_time(self.child.id())
    }

    /// Returns the current resident memory in KiB.
    pub(super) fn resident(&self) -> Result<u64> {
        let text = self.read("status")?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.context("/proc/PID/status lacks VmRSS")
    }

    fn read(&self, file: &str) -> Result<String> {
        read(self.child.id(), file)
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Binds this thread to one core.
pub(super) fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)
        .with_context(|| format!("bind a thread to core {core}"))
}

fn free_address() -> Result<SocketAddr> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(probe.local_addr()?)
}

/// Returns the processor time of a process so far, user and system.
pub(crate) fn cpu_time(process: u32) -> Result<Duration> {
    let text = read(process, "stat")?;
    // the process name in parentheses may contain any character
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut numbers = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let (Some(Ok(user)), Some(Ok(system))) = (numbers.next(), numbers.next()) else {
        bail!("/proc/{process}/stat is not as expected: {text}");
    };
    let per_second = sysconf(SysconfVar::CLK_TCK)?
        .and_then(|ticks| u64::try_from(ticks).ok())
        .unwrap_or(100);
    Ok(Duration::from_millis((user + system) * 1000 / per_second))
}

fn read(process: u32, file: &str) -> Result<String> {
    let path = Path::new("/proc").join(process.to_string()).join(file);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}
