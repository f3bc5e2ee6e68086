//! `e2e-bench hold`: one process holds as many host ports as the usual limit of open files allows.
//! It compares the keeper with the method of a CNI daemon in Go (galaxy): a listener per port.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portmapping_enforcer::keeper_client::KeeperClient;
use portmapping_keeper::wire::HoldOutcome;
use portmapping_shared::{HostPort, PortKey, Protocol};

use super::netns::Netns;
use super::peers;
use super::report::{Report, Row};
use super::stats::{median, ratio};
use super::{Options, folder};
use e2e::artifacts::{go, rust};

mod reacquire;

const FIRST: u16 = 20_000;
/// As many as fit into a limit of 20,000 open files, together with the other files of the process.
const PORTS: u16 = 19_900;
const ROUNDS: u16 = 5;
/// Longest time for all ports.
const LIMIT: Duration = Duration::from_secs(30);
const PEER: &str = "listeners in Go";

/// The figures of one participant, with a value per round.
#[derive(Debug, Default)]
struct Samples {
    /// Time from the start of the process to the last port, in ms.
    time: Vec<f64>,
    /// Resident memory of the process, in MB.
    resident: Vec<f64>,
    /// Growth of the kernel's slabs in MB. It is of the whole machine, so other processes affect
    /// it.
    slab: Vec<f64>,
}

pub(super) fn run(options: &Options) -> Result<Report> {
    let keeper = rust::release(&["enforcer"])?.join("enforcer");
    let holder = go::program("holder", &peers::sources("holder"), &["go.mod", "main.go"])?;
    let folder = folder("hold")?;
    let mut samples = [Samples::default(), Samples::default()];
    options.rounds(ROUNDS).run(2, |_, who| {
        let netns = Netns::new()?;
        let slab = slab()?;
        let start = Instant::now();
        let holding = if who == 0 {
            hold_ours(&netns, &keeper, &folder)
        } else {
            hold_theirs(&netns, &holder)
        }?;
        let samples = &mut samples[who];
        samples.time.push(start.elapsed().as_secs_f64() * 1e3);
        samples.resident.push(resident(&holding)?);
        samples.slab.push(self::slab()? - slab);
        drop(holding);
        anyhow::Ok(())
    })?;
    let [ours, theirs] = samples;
    let mut report = Report::default();
    for (what, unit, ours, theirs) in [
        ("time from process start", "ms", ours.time, theirs.time),
        ("resident memory", "MB", ours.resident, theirs.resident),
        ("kernel memory (slab)", "MB", ours.slab, theirs.slab),
    ] {
        report.push(
            Row::new(
                format!("hold {PORTS} TCP ports, {what}"),
                unit,
                median(&ours),
            )
            .against(PEER, median(&theirs), ratio(&ours, &theirs)),
        );
    }
    reacquire::run(options, &keeper, &mut report)?;
    Ok(report)
}

/// A process that holds ports until this is dropped.
struct Holding(Child);

impl Drop for Holding {
    fn drop(&mut self) {
        // fails only if the process has exited already, which closes its ports too
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Result<Holding> {
    let child = command.spawn().context("start a holder")?;
    Ok(Holding(child))
}

/// Starts a keeper; returns it and the path of its socket.
fn keep(netns: &Netns, program: &Path, folder: &Path) -> Result<(Holding, PathBuf)> {
    let socket = folder.join("keeper.sock");
    let mut command = netns.command(program);
    command.arg("keep").arg("--socket").arg(&socket);
    command.arg("--run-dir").arg(folder.join("run"));
    command.args(["--range", &format!("{FIRST}-{}", FIRST + PORTS - 1)]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok((start(&mut command)?, socket))
}

fn hold_ours(netns: &Netns, program: &Path, folder: &Path) -> Result<Holding> {
    let (holding, socket) = keep(netns, program, folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let ports: Vec<PortKey> = (FIRST..FIRST + PORTS)
        .filter_map(HostPort::new)
        .map(|port| (Protocol::Tcp, port))
        .collect();
    let outcomes = runtime.block_on(async {
        let mut keeper = KeeperClient::connect(socket, LIMIT).await?;
        keeper.hold(&ports).await
    });
    let outcomes = outcomes.context("ask the keeper to hold")?;
    let refused = outcomes
        .iter()
        .filter(|outcome| !matches!(outcome, HoldOutcome::Held))
        .count();
    if refused > 0 || outcomes.len() != ports.len() {
        bail!("the keeper holds {refused} of {PORTS} ports not");
    }
    Ok(holding)
}

fn hold_theirs(netns: &Netns, program: &Path) -> Result<Holding> {
    let mut command = netns.command(program);
    command.args([FIRST.to_string(), PORTS.to_string()]);
    // the process exits at the end of its input, so the child's handle keeps the pipe open
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holding = start(&mut command)?;
    let stdout = holding
        .0
        .stdout
        .take()
        .context("the holder has no output")?;
    let (sender, line) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    let line = line.recv_timeout(LIMIT).context("wait for the holder")??;
    if line.trim() != format!("held {PORTS}") {
        bail!("the holder in Go printed {line:?}");
    }
    Ok(holding)
}

fn resident(holding: &Holding) -> Result<f64> {
    let path = format!("/proc/{}/status", holding.0.id());
    kilobytes(&path, "VmRSS:")
}

fn slab() -> Result<f64> {
    kilobytes("/proc/meminfo", "Slab:")
}

/// Returns the value of a field in kB as MB.
fn kilobytes(path: &str, field: &str) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.with_context(|| format!("no {field} in {path}"))?;
    let number: f64 = number
        .parse()
        .with_context(|| format!("{field} in {path} is no number"))?;
    Ok(number / 1e3)
}
