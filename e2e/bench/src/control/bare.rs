//! The minimum with iptables: one chain of DNAT rules without owners. Jumps from the same two
//! chains as ours lead to it, and the same program changes it.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use portmapping_dataplane::Flavour;

use crate::lab::{CONTAINER_PORT, pod};
use crate::netns::Netns;
use crate::ours::ms;

/// Makes the chain with a rule for each port.
pub(super) fn load(netns: &Netns, flavour: Flavour, host_ports: &[u16]) -> Result<()> {
    let jumps = ["PREROUTING", "OUTPUT"].map(|chain| format!("-A {chain} -j BARE\n"));
    let rules = host_ports.iter().map(|port| rule('A', *port));
    let text: String = jumps.into_iter().chain(rules).collect();
    restore(
        netns,
        flavour,
        &format!("*nat\n:BARE - [0:0]\n{text}COMMIT\n"),
    )
    .map(drop)
}

/// Appends (`A`) or deletes (`D`) one rule; returns the time in ms.
pub(super) fn change(netns: &Netns, flavour: Flavour, what: char, port: u16) -> Result<f64> {
    restore(
        netns,
        flavour,
        &format!("*nat\n{}COMMIT\n", rule(what, port)),
    )
}

fn rule(what: char, port: u16) -> String {
    let pod = pod(port);
    format!("-{what} BARE -p tcp --dport {port} -j DNAT --to-destination {pod}:{CONTAINER_PORT}\n")
}

fn restore(netns: &Netns, flavour: Flavour, text: &str) -> Result<f64> {
    let program = format!("{flavour}-restore");
    netns.run(|| {
        let start = Instant::now();
        let mut child = Command::new(&program)
            .args(["--noflush", "-w", "5"])
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let mut stdin = child.stdin.take().context("no pipe to iptables-restore")?;
        stdin.write_all(text.as_bytes()).context("write rules")?;
        drop(stdin);
        let status = child.wait().context("wait for iptables-restore")?;
        if !status.success() {
            bail!("{program} failed ({status})");
        }
        Ok(ms(start))
    })
}
