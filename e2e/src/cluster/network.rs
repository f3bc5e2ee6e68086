//! The fabric: one bridge in the control plane's network namespace, a veth pair per machine, both
//! address families. Every cluster uses the same addresses, each in namespaces of its own.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::wait::{self, Probe};

/// Client credentials for this many nodes are made at the start.
pub(crate) const MAX_NODES: u8 = 16;
/// Where pods and nodes reach the API server.
pub(crate) const API_SERVER: &str = "https://10.240.0.1:6443";
pub(crate) const API_SERVER_SOCKET: &str = "10.240.0.1:6443";
pub(crate) const CONTROL_PLANE: [&str; 2] = ["10.240.0.1", "fd00:240::1"];
pub(crate) const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
pub(crate) const SERVICE_OF_API_SERVER: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
pub(crate) const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
const CLIENT_HOST_NUMBER: u8 = 200;
/// A bridge without a fixed address takes the lowest of its ports. It would change with each machine that
/// comes back, while the others still send to the old one.
const FABRIC_MAC: &str = "02:00:0a:f0:00:01";

/// A machine on the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    Node(u8),
    /// Outside the cluster: no routes to pods or Services.
    Client,
}

impl Machine {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Node(index) => format!("node{index}"),
            Self::Client => "client".to_owned(),
        }
    }

    fn host_number(self) -> u8 {
        match self {
            Self::Node(index) => 10 + index,
            Self::Client => CLIENT_HOST_NUMBER,
        }
    }

    /// Fixed, because neighbours remember the address of a machine that comes back.
    fn mac(self) -> String {
        format!("02:00:0a:f0:00:{:02x}", self.host_number())
    }

    pub(crate) fn ipv4(self) -> String {
        format!("10.240.0.{}", self.host_number())
    }

    pub(crate) fn ipv6(self) -> String {
        format!("fd00:240::{}", self.host_number())
    }
}

/// The pod ranges of a node, IPv4 and IPv6.
pub(crate) fn pod_ranges(node: u8) -> [String; 2] {
    [
        format!("10.244.{node}.0/24"),
        format!("fd00:244:0:{node:x}::/64"),
    ]
}

/// Makes the bridge, in the control plane's namespace.
pub(crate) fn create_fabric() -> Result<()> {
    forward()?;
    sysctl("net/bridge/bridge-nf-call-iptables", "0");
    sysctl("net/bridge/bridge-nf-call-ip6tables", "0");
    let [ipv4, ipv6] = CONTROL_PLANE;
    ip(&format!(
        "link set lo up\n\
         link add fabric address {FABRIC_MAC} type bridge mcast_snooping 0\n\
         address add {ipv4}/24 dev fabric\n\
         address add {ipv6}/64 dev fabric nodad\n\
         link set fabric up\n"
    ))
}

/// Plugs a machine into the fabric, seen from the control plane. `pid` is its first process.
pub(crate) fn plug_in(machine: Machine, pid: u32) -> Result<()> {
    let port = format!("to-{}", machine.name());
    // The interface of a killed machine exists until the kernel removes it. This fails where there is none;
    // the wait below checks that it is gone.
    let _ = ip(&format!("link delete {port}\n"));
    let what = format!("the interface of an earlier {} to go", machine.name());
    wait::until(
        &what,
        Duration::from_mins(1),
        Duration::from_millis(10),
        || {
            let list = fs::read_to_string("/proc/net/dev").context("read /proc/net/dev")?;
            let there = list.contains(&format!("{port}:"));
            Ok(if there {
                Probe::Missing(format!("{port} exists"))
            } else {
                Probe::Done(())
            })
        },
    )?;
    let mac = machine.mac();
    let mut batch = format!(
        "link add {port} type veth peer name eth0 address {mac} netns {pid}\n\
         link set {port} master fabric up\n"
    );
    if let Machine::Node(index) = machine {
        let [pods4, pods6] = pod_ranges(index);
        let _ = writeln!(batch, "route replace {pods4} via {}", machine.ipv4());
        let _ = writeln!(batch, "route replace {pods6} via {}", machine.ipv6());
    }
    ip(&batch)
}

/// Gives a machine its addresses, seen from inside.
pub(crate) fn configure(machine: Machine, bridge_nf: bool) -> Result<()> {
    if matches!(machine, Machine::Node(_)) {
        forward()?;
        let value = if bridge_nf { "1" } else { "0" };
        sysctl("net/bridge/bridge-nf-call-iptables", value);
        sysctl("net/bridge/bridge-nf-call-ip6tables", value);
    }
    let [gateway4, gateway6] = CONTROL_PLANE;
    let (ipv4, ipv6) = (machine.ipv4(), machine.ipv6());
    let mut batch = format!(
        "link set lo up\n\
         address add {ipv4}/24 dev eth0\n\
         address add {ipv6}/64 dev eth0 nodad\n\
         link set eth0 up\n"
    );
    if matches!(machine, Machine::Node(_)) {
        // The control plane routes between the nodes' pods.
        let _ = writeln!(batch, "route add 0.0.0.0/0 via {gateway4}");
        let _ = writeln!(batch, "route add ::/0 via {gateway6}");
    }
    ip(&batch)
}

fn forward() -> Result<()> {
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ] {
        fs::write(format!("/proc/sys/{key}"), value)
            .with_context(|| format!("set {key}={value}"))?;
    }
    Ok(())
}

/// Best effort: the key is missing where the kernel module is.
fn sysctl(key: &str, value: &str) {
    if let Err(error) = fs::write(format!("/proc/sys/{key}"), value) {
        eprintln!("cannot set {key}={value}: {error}");
    }
}

/// One process for a whole list of changes.
fn ip(batch: &str) -> Result<()> {
    let mut ip = process::command("ip");
    ip.args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = ip.spawn().context("run ip -batch")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(batch.as_bytes())
            .context("write to ip -batch")?;
    }
    let output = child.wait_with_output().context("wait for ip -batch")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("ip -batch failed: {}\nThe batch was:\n{batch}", text.trim());
    }
    Ok(())
}
