//! Debian's registry: programs that serve one folder at the same address, each where it is started.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};
use e2e::artifacts::packages;
use e2e::{Cluster, process};

use super::super::eventually;

const PROGRAM: &str = "/usr/bin/docker-registry";
/// The user and the password of a registry with a login: as `config.json` of Docker has them, and as the registry's list of users has them.
pub(crate) const LOGIN: &str = "cmVsZWFzZTpzZWNyZXQ=";
const USERS: &str = "release:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// The programs; they end with this value.
pub(crate) struct Servers {
    running: Vec<Child>,
}

impl Servers {
    /// Starts a registry on every node. Each lets everyone read and write.
    pub(crate) fn on_nodes(cluster: &Cluster, folder: &Path, address: &str) -> Result<Self> {
        let config = configure(folder, "open", address, "")?;
        let mut servers = Self {
            running: Vec::new(),
        };
        for node in cluster.nodes()? {
            servers.start(&mut cluster.command(&node, PROGRAM)?, &config)?;
        }
        Ok(servers)
    }

    /// Starts a registry on this machine that lets only the user of [`LOGIN`] read and write.
    pub(crate) fn here(folder: &Path, address: &str) -> Result<Self> {
        let users = folder.join("users");
        fs::write(&users, USERS).with_context(|| format!("write {}", users.display()))?;
        let login = format!(
            "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            users.display()
        );
        let config = configure(folder, "login", address, &login)?;
        let mut servers = Self {
            running: Vec::new(),
        };
        servers.start(&mut process::command(PROGRAM), &config)?;
        eventually("the registry to answer", || {
            TcpStream::connect(address).context("connect to the registry")
        })?;
        Ok(servers)
    }

    fn start(&mut self, program: &mut Command, config: &Path) -> Result<()> {
        // a line for each object that is not there yet
        let log = config.with_extension("log");
        let log = File::options().create(true).append(true).open(&log);
        program.stderr(log.context("open the log of a registry")?);
        let server = program.arg("serve").arg(config).spawn();
        self.running.push(server.context("start a registry")?);
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.running {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Writes the configuration of a registry; what is stored goes into the folder too.
fn configure(folder: &Path, name: &str, address: &str, more: &str) -> Result<PathBuf> {
    packages::ensure_file(PROGRAM, "docker-registry")?;
    let config = folder.join(format!("{name}.yaml"));
    let storage = folder.join("storage");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n{more}",
        storage.display()
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    Ok(config)
}
