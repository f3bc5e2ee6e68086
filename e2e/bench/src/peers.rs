//! Other software that maps ports: its programs, and its rules in bulk, as it makes them.

pub(super) mod kube_proxy;
pub(super) mod portmap;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::netns::Netns;

/// Which of the two kinds of iptables a program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Iptables {
    Nft,
    Legacy,
}

impl Iptables {
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// Returns the folder of the Go module of a peer that is built here.
pub(super) fn sources(name: &str) -> PathBuf {
    e2e::paths::root().join("e2e/bench/peers").join(name)
}

/// Rules as text, and the program that loads them.
#[derive(Clone, Debug)]
pub(super) enum Rules {
    Iptables(Iptables, String),
    Nftables(String),
}

impl Rules {
    /// Loads the rules into a node without rules. With `--noflush`, iptables-nft would take minutes
    /// for 20,000, because it searches all chains for each rule.
    pub(super) fn load(&self, netns: &Netns) -> Result<()> {
        let (mut command, text) = match self {
            Self::Iptables(kind, text) => {
                let program = format!("iptables-{}-restore", kind.suffix());
                let mut command = e2e::process::command(program);
                command.args(["--wait", "60"]);
                (command, text)
            }
            Self::Nftables(text) => {
                let mut command: Command = e2e::process::command("nft");
                command.args(["-f", "-"]);
                (command, text)
            }
        };
        netns.feed(&mut command, text.as_bytes()).map(drop)
    }
}
