//! CNI's portmap plugin: Debian's build and a build of the newest Go module, run as a container
//! runtime runs them. The plugin itself would take hours for 20,000 mappings, so its rules are also
//! loaded in bulk; [`verify`] compares them with those of the plugin.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha512};

use super::{Iptables, Rules};
use crate::lab::{CONTAINER_PORT, by_pod, pod, ports};
use crate::netns::Netns;
use e2e::artifacts::go;
use e2e::{Containerd, process};

const NETWORK: &str = "podnet";

/// A build of the plugin, and the backend that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Debian(Iptables),
    NewestIptables,
    NewestNftables,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [
        Self::Debian(Iptables::Nft),
        Self::Debian(Iptables::Legacy),
        Self::NewestIptables,
        Self::NewestNftables,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debian(Iptables::Nft) => "portmap (Debian), iptables-nft",
            Self::Debian(Iptables::Legacy) => "portmap (Debian), iptables-legacy",
            Self::NewestIptables => "portmap (newest), iptables-nft",
            Self::NewestNftables => "portmap (newest), nftables",
        }
    }

    fn iptables(self) -> Iptables {
        match self {
            Self::Debian(kind) => kind,
            Self::NewestIptables | Self::NewestNftables => Iptables::Nft,
        }
    }

    /// Returns the rules of these mappings, in the order in which the plugin would make them.
    pub(crate) fn rules(self, protocol: &str, host_ports: &[u16]) -> Rules {
        match self {
            Self::NewestNftables => Rules::Nftables(nftables(protocol, host_ports)),
            _ => Rules::Iptables(self.iptables(), iptables(protocol, host_ports)),
        }
    }

    /// Returns its rules as read back, for a comparison.
    fn dump(self, netns: &Netns) -> Result<String> {
        let text = match self {
            Self::NewestNftables => netns.sh("nft list ruleset")?,
            _ => netns.sh(&format!(
                "iptables-{}-save -t nat",
                self.iptables().suffix()
            ))?,
        };
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        if self != Self::NewestNftables {
            // the order of chains does not matter; the order of rules in a chain does
            lines.sort_by_key(|line| line.split(' ').take(2).collect::<Vec<_>>());
        }
        Ok(lines.join("\n"))
    }
}

/// The plugins, and the folders with the iptables that they must use.
#[derive(Debug)]
pub(crate) struct Plugins {
    newest: PathBuf,
    debian: PathBuf,
    folder: PathBuf,
}

impl Plugins {
    /// Finds the plugins. The links that decide which iptables a plugin uses are made in `folder`.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        for kind in [Iptables::Nft, Iptables::Legacy] {
            let folder = folder.join(kind.suffix());
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            for family in ["iptables", "ip6tables"] {
                for rest in ["", "-save", "-restore"] {
                    let program = find(&format!("{family}-{}{rest}", kind.suffix()))?;
                    let link = folder.join(format!("{family}{rest}"));
                    symlink(&program, &link).with_context(|| format!("link {}", link.display()))?;
                }
            }
        }
        Ok(Self {
            newest: go::node_tools(Containerd::default())?.join("portmap"),
            debian: PathBuf::from("/usr/lib/cni/portmap"),
            folder: folder.to_owned(),
        })
    }

    /// Runs the plugin with ADD or DEL on a node, for a pod with these host ports.
    pub(crate) fn run(
        &self,
        kind: Kind,
        operation: &str,
        node: &Netns,
        pods: &Netns,
        pod_ports: &[u16],
    ) -> Result<()> {
        let (mut command, input) = self.command(kind, operation, pods, pod_ports)?;
        node.feed(&mut command, &input).map(drop)
    }

    /// Returns the plugin's command and its standard input: one pod with all these host ports, at
    /// the address for the last of them.
    pub(crate) fn command(
        &self,
        kind: Kind,
        operation: &str,
        pods: &Netns,
        pod_ports: &[u16],
    ) -> Result<(Command, Vec<u8>)> {
        let last = *pod_ports.last().context("a pod without host ports")?;
        let (program, version, backend) = match kind {
            Kind::Debian(_) => (&self.debian, "0.4.0", None),
            Kind::NewestIptables => (&self.newest, "1.0.0", Some("iptables")),
            Kind::NewestNftables => (&self.newest, "1.0.0", Some("nftables")),
        };
        let mut command = process::command(program);
        let own = self.folder.join(kind.iptables().suffix());
        let path =
            env::join_paths(std::iter::once(own).chain(env::split_paths(&process::search_path())))
                .context("a folder with a colon in its name")?;
        let netns = pods.path();
        command
            .env("PATH", path)
            .env("CNI_COMMAND", operation)
            .env("CNI_CONTAINERID", container(last))
            .env("CNI_NETNS", &netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni");
        let mut address = json!({"address": format!("{}/24", pod(last)), "interface": 0});
        if version == "0.4.0" {
            address["version"] = json!("4");
        }
        let mappings: Vec<_> = pod_ports
            .iter()
            .map(|port| json!({"hostPort": port, "containerPort": CONTAINER_PORT, "protocol": "tcp"}))
            .collect();
        let mut config = json!({
            "cniVersion": version, "name": NETWORK, "type": "portmap",
            "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": mappings},
            "prevResult": {
                "cniVersion": version,
                "interfaces": [{"name": "eth0", "sandbox": netns}],
                "ips": [address],
                "routes": [],
            },
        });
        if let Some(backend) = backend {
            config["backend"] = json!(backend);
        }
        let input = serde_json::to_vec(&config).context("encode the plugin's configuration")?;
        Ok((command, input))
    }
}

fn find(program: &str) -> Result<PathBuf> {
    env::split_paths(&process::search_path())
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not on the PATH"))
}

/// Fails unless the plugin makes exactly the rules that are loaded in bulk.
pub(crate) fn verify(plugins: &Plugins) -> Result<()> {
    // two pods
    let six = ports(6);
    for kind in Kind::ALL {
        let (real, bulk, pods) = (Netns::new()?, Netns::new()?, Netns::new()?);
        for of_pod in by_pod(&six) {
            plugins.run(kind, "ADD", &real, &pods, of_pod)?;
        }
        kind.rules("tcp", &six).load(&bulk)?;
        let (real, bulk) = (kind.dump(&real)?, kind.dump(&bulk)?);
        if real != bulk || !real.contains(&pod(six[1]).to_string()) {
            bail!(
                "{} makes other rules than this benchmark loads for it. The plugin:\n{real}\nThe benchmark:\n{bulk}",
                kind.name()
            );
        }
    }
    Ok(())
}

fn container(host_port: u16) -> String {
    format!("bench-{host_port:05}")
}

/// Returns the chain of a container: as much of the hash as fits into the name of a chain.
fn chain(host_port: u16) -> String {
    let mut text = "CNI-DN-".to_owned();
    let hash = Sha512::digest(format!("{NETWORK}{}", container(host_port)));
    for byte in &hash[..11] {
        let _ = write!(text, "{byte:02x}");
    }
    text.truncate(28);
    text
}

fn iptables(protocol: &str, host_ports: &[u16]) -> String {
    let mut chains = String::new();
    let mut entries = String::new();
    let mut rules = String::new();
    for ports in by_pod(host_ports) {
        let Some(last) = ports.last() else { continue };
        let (chain, ip, id) = (chain(*last), pod(*last), container(*last));
        let [a, b, c, _] = ip.octets();
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let all: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let all = all.join(",");
        let _ = writeln!(
            entries,
            "-A CNI-HOSTPORT-DNAT -p {protocol} -m comment --comment \"dnat name: \\\"{NETWORK}\\\" id: \\\"{id}\\\"\" -m multiport --dports {all} -j {chain}"
        );
        for port in ports {
            let of_port = format!("-p {protocol} -m {protocol} --dport {port}");
            let _ = writeln!(
                rules,
                "-A {chain} -s {a}.{b}.{c}.0/24 {of_port} -j CNI-HOSTPORT-SETMARK\n\
                 -A {chain} -s 127.0.0.1/32 {of_port} -j CNI-HOSTPORT-SETMARK\n\
                 -A {chain} {of_port} -j DNAT --to-destination {ip}:{CONTAINER_PORT}"
            );
        }
    }
    format!(
        "*nat\n\
         :CNI-HOSTPORT-DNAT - [0:0]\n\
         :CNI-HOSTPORT-MASQ - [0:0]\n\
         :CNI-HOSTPORT-SETMARK - [0:0]\n\
         {chains}\
         -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
         -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
         -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000\n\
         {entries}{rules}COMMIT\n"
    )
}

fn nftables(protocol: &str, host_ports: &[u16]) -> String {
    let mut translating = String::new();
    let mut masquerading = String::new();
    for ports in by_pod(host_ports) {
        let Some(last) = ports.last() else { continue };
        let (ip, id) = (pod(*last), container(*last));
        for port in ports {
            let _ = writeln!(
                translating,
                "{protocol} dport {port} dnat to {ip}:{CONTAINER_PORT} comment \"{id}\""
            );
        }
        let _ = writeln!(
            masquerading,
            "ip saddr {ip} ip daddr {ip} masquerade comment \"{id}\"\n\
             ip saddr 127.0.0.1 ip daddr {ip} masquerade comment \"{id}\""
        );
    }
    format!(
        "table ip cni_hostport {{
comment \"CNI portmap plugin\"
chain hostports {{
{translating}}}
chain hostip_hostports {{
}}
chain hostports_all {{
jump hostip_hostports
jump hostports
}}
chain prerouting {{
type nat hook prerouting priority dstnat
fib daddr type local jump hostports_all
}}
chain output {{
type nat hook output priority -100
fib daddr type local jump hostports_all
}}
chain masquerading {{
type nat hook postrouting priority srcnat
{masquerading}}}
}}
"
    )
}
