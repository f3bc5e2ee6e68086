//! How a process of the cluster is named on its command line, and found by that name.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, bail};

use super::network::Machine;

/// A role as it stands on a command line: also what a process is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoleName(pub(crate) &'static str, pub(crate) Option<u8>);

impl RoleName {
    /// The first process of a machine.
    pub(crate) fn first_of(machine: Machine) -> Self {
        match machine {
            Machine::Node(index) => Self("node-init", Some(index)),
            Machine::Client => Self("client-init", None),
        }
    }

    /// The first process of a host: `client`, `control-plane`, `node1`, `node2`, ...
    pub(crate) fn of_host(host: &str) -> Result<Self> {
        match host {
            "control-plane" => Ok(Self("control-plane", None)),
            host => machine(host).map(Self::first_of),
        }
    }

    pub(crate) fn arguments(self, state: &Path) -> Vec<OsString> {
        let mut arguments = vec!["internal".into(), self.0.into(), state.into()];
        arguments.extend(self.1.map(|index| index.to_string().into()));
        arguments
    }
}

/// The machine of this name.
pub(crate) fn machine(host: &str) -> Result<Machine> {
    let index = host
        .strip_prefix("node")
        .and_then(|index| index.parse().ok());
    match (host, index) {
        ("client", _) => Ok(Machine::Client),
        (_, Some(index)) => Ok(Machine::Node(index)),
        _ => bail!("no host {host:?}: it is client, control-plane, node1, node2, ..."),
    }
}
