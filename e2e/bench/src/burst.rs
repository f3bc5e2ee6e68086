//! `e2e-bench burst`: starts 125 pods with four host ports each at once, on a node with 5,000
//! mappings, and waits until an external client reaches every port. The plugin has no daemon, so a
//! container runtime starts 125 plugin processes.

use std::io::Write as _;
use std::net::SocketAddrV4;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portmapping_shared::Protocol;
use socket2::{Domain, Socket, Type};

use super::lab::{CONTAINER_PORT, LAST_PORT, Lab, Node, mappings};
use super::ours::{Backend, ms};
use super::peers::portmap::{self, Kind, Plugins};
use super::probe::Servers;
use super::report::{Report, Row};
use super::stats::{median, ratio};
use super::{Options, folder};
use e2e::progress::say;

const ROUNDS: u16 = 3;
const PODS: u16 = 125;
const PORTS_PER_POD: u16 = 4;
const PRESENT: u16 = 5_000;
/// The mappings that are present with iptables, which is measured with 2,000 mappings in total.
const IPTABLES_PRESENT: u16 = 1_500;
/// Longest time until all ports are reached.
const LIMIT: Duration = Duration::from_mins(2);
/// Longest time for one connection; an unmapped port refuses at once.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_micros(200);

/// The peer: the plugin with nftables, because those with iptables would take minutes.
const RIVAL: Kind = Kind::NewestNftables;

pub(super) fn run(options: &Options) -> Result<Report> {
    measure(options, PODS, PRESENT)
}

fn measure(options: &Options, pods: u16, already: u16) -> Result<Report> {
    let plugins = Plugins::find(&folder("burst")?)?;
    portmap::verify(&plugins)?;
    let mut lab = Lab::new()?;
    let servers = Servers::default();
    let any = SocketAddrV4::new([0, 0, 0, 0].into(), CONTAINER_PORT);
    servers.tcp(&lab.pods, any)?;
    let count = pods * PORTS_PER_POD;
    let new: Vec<u16> = (LAST_PORT - count + 1..=LAST_PORT).collect();
    let present: Vec<u16> = (LAST_PORT - count - already + 1..=LAST_PORT - count).collect();
    let mut times = vec![Vec::new(); Backend::ALL.len() + 1];
    options.rounds(ROUNDS).run(times.len(), |_, index| {
        // each node is used once, because deleting through the plugin takes longer than all the
        // rest
        let node = lab.node()?;
        let present_for = |backend: Backend| {
            &present[..usize::from(backend.most(already, already.min(IPTABLES_PRESENT)))]
        };
        let (name, time) = match Backend::ALL.get(index) {
            Some(backend) => (
                backend.name(),
                ours(*backend, &lab, &node, present_for(*backend), &new)?,
            ),
            None => (RIVAL.name(), theirs(&plugins, &lab, &node, &present, &new)?),
        };
        say(format_args!("  {name}: {time:.0} ms"));
        times[index].push(time);
        anyhow::Ok(())
    })?;
    let mut report = Report::default();
    let rival = times.pop().unwrap_or_default();
    for (backend, times) in Backend::ALL.into_iter().zip(times) {
        let title = format!(
            "{}: {pods} pods x {PORTS_PER_POD} ports live, {} present",
            backend.name(),
            backend.most(already, already.min(IPTABLES_PRESENT))
        );
        let row = Row::new(title, "ms", median(&times));
        let row = row.against(RIVAL.name(), median(&rival), ratio(&times, &rival));
        report.push(row.bar(backend.bars().burst));
    }
    Ok(report)
}

fn ours(backend: Backend, lab: &Lab, node: &Node, present: &[u16], new: &[u16]) -> Result<f64> {
    let mut driver = backend.open(&node.netns)?;
    driver.create(&node.netns, &mappings(Protocol::Tcp, present)?)?;
    let new_mappings = mappings(Protocol::Tcp, new)?;
    until_live(lab, node, new, || {
        driver.create(&node.netns, &new_mappings).map(drop)
    })
}

fn theirs(plugins: &Plugins, lab: &Lab, node: &Node, present: &[u16], new: &[u16]) -> Result<f64> {
    RIVAL.rules("tcp", present).load(&node.netns)?;
    until_live(lab, node, new, || {
        let children = node.netns.run(|| {
            let pods = new.chunks(usize::from(PORTS_PER_POD));
            pods.map(|pod_ports| start(plugins, lab, pod_ports))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut failed = 0;
        for mut child in children {
            failed += usize::from(!child.0.wait().context("wait for a plugin")?.success());
        }
        if failed > 0 {
            bail!("{failed} plugins failed");
        }
        Ok(())
    })
}

/// A running plugin; it is killed on drop if it has not exited.
struct Plugin(Child);

impl Drop for Plugin {
    fn drop(&mut self) {
        // fails only if it has exited already
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(plugins: &Plugins, lab: &Lab, pod_ports: &[u16]) -> Result<Plugin> {
    let (mut command, input) = plugins.command(RIVAL, "ADD", &lab.pods, pod_ports)?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = Plugin(command.spawn().context("start the plugin")?);
    let mut stdin = child.0.stdin.take().context("no pipe to the plugin")?;
    // the input is smaller than a pipe's buffer, so this does not block
    stdin.write_all(&input).context("write to the plugin")?;
    Ok(child)
}

/// Returns the time from the start of `work` until every port answers a client, in ms.
fn until_live(
    lab: &Lab,
    node: &Node,
    host_ports: &[u16],
    work: impl FnOnce() -> Result<()>,
) -> Result<f64> {
    thread::scope(|scope| {
        let start = Instant::now();
        let live = scope.spawn(move || lab.client.run(|| all_live(node, host_ports, start)));
        work()?;
        match live.join() {
            Ok(time) => time,
            Err(_) => bail!("the client ended early"),
        }
    })
}

fn all_live(node: &Node, host_ports: &[u16], start: Instant) -> Result<f64> {
    for port in host_ports {
        let to = SocketAddrV4::new(node.address, *port);
        while let Err(error) = connect(to) {
            if start.elapsed() > LIMIT {
                bail!("{to} is not live after {} s: {error}", LIMIT.as_secs());
            }
            thread::sleep(PAUSE);
        }
    }
    Ok(ms(start))
}

fn connect(to: SocketAddrV4) -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&to.into(), PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_of_a_small_burst_are_reached() {
        let report = measure(&Options::for_tests(), 3, 20)
            .expect("a round")
            .to_string();
        assert!(
            report.contains("nftables: 3 pods x 4 ports live, 20 present"),
            "{report}"
        );
    }
}
