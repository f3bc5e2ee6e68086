//! A whole enforcer pod is lost: its rules stay, and no process holds their ports. Measures how
//! long after the start of the next process each port is held again.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portmapping_enforcer::keeper_client::KeeperClient;
use portmapping_shared::{PortKey, Protocol};

use super::super::lab::{FIRST_PORT, LAST_PORT, mappings};
use super::super::netns::Netns;
use super::super::ours::Backend;
use super::super::report::{Bar, Report, Row};
use super::super::stats::median;
use super::super::{Options, folder};
use super::{LIMIT, keep, start};

/// More than the number of pods on a node, because each pod may have several ports.
const MAPPED: u16 = 500;
const ROUNDS: u16 = 9;
/// The bar for the time from the start of the process, in ms.
const BAR: Bar = Bar::AtMost(100.0);

/// Adds a row for each backend.
pub(super) fn run(options: &Options, program: &Path, report: &mut Report) -> Result<()> {
    let folder = folder("hold-again")?;
    let ports: Vec<u16> = (FIRST_PORT..FIRST_PORT + MAPPED).collect();
    let mut samples = Backend::ALL.map(|_| Vec::new());
    options.rounds(ROUNDS).run(Backend::ALL.len(), |_, which| {
        let backend = Backend::ALL[which];
        let netns = Netns::new()?;
        let mut rules = backend.open(&netns)?;
        rules.create(&netns, &mappings(Protocol::Tcp, &ports)?)?;
        samples[which].push(held_after(&netns, program, &folder, backend)?);
        anyhow::Ok(())
    })?;
    for (backend, times) in Backend::ALL.into_iter().zip(samples) {
        let what = format!(
            "hold {MAPPED} mapped ports again, {}, from process start",
            backend.name()
        );
        report.push(Row::new(what, "ms", median(&times)).bar(BAR));
    }
    Ok(())
}

/// Returns the time in ms until a keeper that started without ports holds all mapped ports.
fn held_after(netns: &Netns, program: &Path, folder: &Path, backend: Backend) -> Result<f64> {
    let (keeper, socket) = keep(netns, program, folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let mut watching = runtime
        .block_on(KeeperClient::connect(socket.clone(), LIMIT))
        .context("reach the keeper")?;
    let mut command = netns.command(program);
    command.args(["run", "--node-name", "bench", "--cni-results", ""]);
    command.args(["--range", &format!("{FIRST_PORT}-{LAST_PORT}")]);
    command.args(["--backend", backend.flag()]);
    command.arg("--keeper-socket").arg(&socket);
    command.arg("--admin-socket").arg(folder.join("admin.sock"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // it exits without an API server, but it contacts that only after this step
    command.stderr(Stdio::null());
    let begun = Instant::now();
    let enforcer = start(&mut command)?;
    let all = loop {
        let held: BTreeSet<PortKey> = runtime.block_on(watching.list()).context("list ports")?;
        if held.len() == usize::from(MAPPED) {
            break begun.elapsed();
        }
        if begun.elapsed() > LIMIT {
            bail!("{} of {MAPPED} ports are held again", held.len());
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    drop((enforcer, keeper));
    Ok(all.as_secs_f64() * 1e3)
}
