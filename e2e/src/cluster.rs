//! A running cluster, seen from a test or from the command line.

mod cgroups;
mod cni;
mod components;
pub mod config;
mod control_plane;
mod faults;
mod launch;
mod lookup;
mod mounts;
mod namespaces;
mod network;
mod node;
mod owner;
mod pki;
mod readiness;
mod relay;
mod role_name;
pub mod roles;
pub(crate) mod state;
mod verdict;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use self::lookup::Process;

use self::config::{Config, Spec};
use self::network::Machine;
use self::role_name::machine;
use self::verdict::Tests;
use crate::artifacts::image;
use crate::process;

/// How long a program run by [`Cluster::exec`] may take.
const EXEC_LIMIT: Duration = Duration::from_mins(2);
/// Where a node's kubelet looks for static pods.
pub const STATIC_PODS: &str = "/run/cluster/static-pods";
/// Set to a kubeconfig, it makes tests use that cluster.
pub const KUBECONFIG_VARIABLE: &str = "E2E_KUBECONFIG";

/// A cluster to work with: started by this process, by another process, or not by this harness.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    home: Home,
}

#[derive(Debug)]
enum Home {
    /// Ends with this value.
    Owned {
        spec: Box<Spec>,
        owner: Child,
        tests: Mutex<Tests>,
    },
    /// Outlives this process.
    Shared { spec: Box<Spec> },
    /// Known by its API server alone.
    Foreign,
}

impl Cluster {
    /// Builds what is missing and boots a cluster that ends when this value is dropped, or when this
    /// process ends in any way. Returns when every node takes pods.
    pub fn start(config: &Config) -> Result<Self> {
        let (spec, owner) = launch::attached(config)?;
        Ok(Self {
            kubeconfig: spec.state.join(pki::ADMIN),
            home: Home::Owned {
                spec: Box::new(spec),
                owner,
                tests: Mutex::default(),
            },
        })
    }

    /// The cluster of this name, booted in the background where it is not up yet; it stays up until
    /// [`Cluster::destroy`].
    pub fn up(config: &Config) -> Result<Self> {
        launch::detached(config).map(Self::shared)
    }

    /// The running cluster of this name.
    pub fn find(name: &str) -> Result<Option<Self>> {
        let folder = state::folder(name);
        if state::owner(&folder)?.is_none() {
            return Ok(None);
        }
        Ok(Some(Self::shared(Spec::load(&folder)?)))
    }

    /// An existing cluster. Its nodes cannot be entered, and the images must be available in it already.
    pub fn attach(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = fs::canonicalize(kubeconfig)
            .with_context(|| format!("find the kubeconfig {}", kubeconfig.display()))?;
        Ok(Self {
            kubeconfig,
            home: Home::Foreign,
        })
    }

    /// The cluster that [`KUBECONFIG_VARIABLE`] names, or else a new one of this process.
    pub fn from_environment(config: &Config) -> Result<Self> {
        match env::var_os(KUBECONFIG_VARIABLE) {
            Some(kubeconfig) => Self::attach(Path::new(&kubeconfig)),
            None => Self::start(config),
        }
    }

    /// Takes the cluster of this name down and removes everything it left. False when there was none.
    pub fn destroy(name: &str) -> Result<bool> {
        state::destroy(name)
    }

    fn shared(spec: Spec) -> Self {
        Self {
            kubeconfig: spec.state.join(pki::ADMIN),
            home: Home::Shared {
                spec: Box::new(spec),
            },
        }
    }

    fn spec(&self) -> Option<&Spec> {
        match &self.home {
            Home::Owned { spec, .. } | Home::Shared { spec } => Some(spec),
            Home::Foreign => None,
        }
    }

    fn own_spec(&self, what: &str) -> Result<&Spec> {
        let kubeconfig = self.kubeconfig.display();
        self.spec().with_context(|| {
            format!("cannot {what}: the cluster of {kubeconfig} was not started by this harness")
        })
    }

    /// Whether nodes can be entered, killed and added.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.spec().is_some()
    }

    /// The kubeconfig of a cluster admin, usable from this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The choices the cluster was started with; `None` when this harness did not start it.
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.spec().map(|spec| &spec.config)
    }

    /// The folder with kubectl and the Kubernetes components.
    #[must_use]
    pub fn binaries(&self) -> Option<&Path> {
        self.spec().map(|spec| spec.kubernetes.as_path())
    }

    /// The API server's audit log: a line of JSON per call.
    pub fn audit_log(&self) -> Result<PathBuf> {
        Ok(self.own_spec("read the audit log")?.log("audit"))
    }

    /// The folder with the logs of all components.
    pub fn logs(&self) -> Result<PathBuf> {
        Ok(self.own_spec("read logs")?.state.join("log"))
    }

    /// kubectl for this cluster.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let program = self
            .binaries()
            .map_or_else(|| "kubectl".into(), |dir| dir.join("kubectl"));
        let mut command = process::command(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs kubectl to its end; returns what it printed.
    pub fn kubectl_run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        process::run(self.kubectl().args(arguments), EXEC_LIMIT)
    }

    /// A command that runs on `host`: `client`, `control-plane`, `node1`, `node2`, ... The client of
    /// a foreign cluster is this machine.
    pub fn command(&self, host: &str, program: impl AsRef<Path>) -> Result<Command> {
        let Some(spec) = self.spec() else {
            if host == "client" {
                let mut command = process::command(program.as_ref());
                command.env("KUBECONFIG", &self.kubeconfig);
                return Ok(command);
            }
            bail!(
                "cannot run {} on {host}: the nodes of the cluster of {} cannot be entered from here",
                program.as_ref().display(),
                self.kubeconfig.display()
            );
        };
        let pid = lookup::pid_of(spec, host)?;
        let mut command = namespaces::enter(pid, program);
        command.env("PATH", components::search_path(spec));
        command.env("KUBECONFIG", spec.state.join(pki::INSIDE));
        Ok(command)
    }

    /// Runs a program with arguments on `host` to its end, with two minutes to do it.
    pub fn exec(&self, host: &str, command: &[&str]) -> Result<Output> {
        let (program, arguments) = command.split_first().context("no program to run")?;
        process::output(self.command(host, program)?.args(arguments), EXEC_LIMIT)
    }

    /// The pid, as this machine sees it, of the first process of `host`. All others of that host
    /// descend from it.
    pub fn pid(&self, host: &str) -> Result<u32> {
        lookup::pid_of(self.own_spec("look into a node")?, host)
    }

    /// The IPv4 and IPv6 address of `host` on the fabric.
    pub fn addresses(&self, host: &str) -> Result<[String; 2]> {
        self.own_spec("know a node's addresses")?;
        Ok(match host {
            "control-plane" => network::CONTROL_PLANE.map(String::from),
            host => {
                let machine = machine(host)?;
                [machine.ipv4(), machine.ipv6()]
            }
        })
    }

    /// Names of the nodes that live now.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let spec = self.own_spec("list nodes")?;
        Ok(lookup::nodes(&spec.state)
            .into_iter()
            .map(|n| Machine::Node(n).name())
            .collect())
    }

    /// Every process of `host`, with its pid as this machine sees it.
    pub fn processes(&self, host: &str) -> Result<Vec<Process>> {
        Ok(lookup::descendants(self.pid(host)?))
    }

    /// Puts the product's images on every node, unless starting or finding this cluster has just done
    /// that. Returns a text that changes when one of them does; `None` in a foreign cluster.
    pub(crate) fn load_product(&mut self) -> Result<Option<String>> {
        if self.config().is_some_and(|config| !config.product) {
            self.load_images(&image::product()?)?;
        }
        let images = self.spec().map(|spec| spec.images.iter());
        let names = |images: std::slice::Iter<'_, PathBuf>| {
            images
                .map(|image| image.to_string_lossy())
                .collect::<Vec<_>>()
                .join("\n")
        };
        Ok(images.map(names))
    }

    /// A file of the harness in the cluster's folder.
    pub(crate) fn note(&self, name: &str) -> Option<PathBuf> {
        self.spec().map(|spec| spec.state.join(name))
    }

    /// Imports image archives on every node that lives, and on every node added later. Returns those
    /// that were not there yet.
    pub fn load_images(&mut self, archives: &[PathBuf]) -> Result<Vec<PathBuf>> {
        match &mut self.home {
            Home::Owned { spec, .. } | Home::Shared { spec } => launch::load_images(spec, archives),
            Home::Foreign => Ok(Vec::new()),
        }
    }

    /// Pids, as this machine sees them, of the processes of `host` with this command line.
    pub fn processes_running(&self, host: &str, command: &[&str]) -> Result<Vec<u32>> {
        let all = lookup::descendants(self.pid(host)?);
        let found = all.iter().filter(|process| {
            let words = process.arguments.iter().map(OsString::as_os_str);
            words.eq(command.iter().map(OsStr::new))
        });
        Ok(found.map(|process| process.pid).collect())
    }

    /// Resident memory, in KiB, of every process in the cluster that runs `program` (its path in its
    /// container), with the process's arguments.
    pub fn resident_memory(&self, program: &str) -> Result<Vec<(String, u64)>> {
        let root = self.pid("control-plane")?;
        let processes = lookup::descendants(root);
        let ours = processes.iter().filter(|process| {
            process
                .arguments
                .first()
                .is_some_and(|first| first.as_os_str() == program)
        });
        Ok(ours
            .filter_map(|process| {
                let words: Vec<_> = process
                    .arguments
                    .iter()
                    .map(|word| word.to_string_lossy())
                    .collect();
                Some((words.join(" "), lookup::status_kib(process.pid, "VmRSS")?))
            })
            .collect())
    }

    /// Ends the cluster if it belongs to this value, and removes its folder. A cluster that is only
    /// dropped ends as well, but its logs stay: a test may have failed.
    pub fn stop(mut self) -> Result<()> {
        let name = self.end()?;
        name.map_or(Ok(()), |name| Self::destroy(&name).map(drop))
    }

    /// The name of the cluster that was ended, if this value owned it.
    fn end(&mut self) -> Result<Option<String>> {
        let Home::Owned { spec, owner, .. } = &mut self.home else {
            return Ok(None);
        };
        let name = spec.config.name.clone();
        drop(owner.stdin.take());
        let ended = process::wait(owner, Duration::from_secs(30))?;
        self.home = Home::Foreign;
        if ended.is_none() {
            bail!("the owner of the cluster {name} did not end within 30 s, killed");
        }
        Ok(Some(name))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let logs = self.logs();
        match (self.end(), logs) {
            (Ok(Some(name)), Ok(logs)) => {
                eprintln!(
                    "the cluster {name} is down; its logs stay in {}",
                    logs.display()
                );
            }
            (Err(error), _) => eprintln!("cannot take the cluster down: {error:#}"),
            _ => {}
        }
    }
}
