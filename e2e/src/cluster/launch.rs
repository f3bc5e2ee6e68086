//! Boots clusters and nodes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::components::tail;
use super::config::{Config, Spec};
use super::network::{MAX_NODES, Machine};
use super::role_name::RoleName;
use super::{lookup, namespaces, owner, pki, readiness, state};
use crate::api::Api;
use crate::artifacts::{cache, cni, go, image, packages};
use crate::progress::{Step, say};
use crate::{paths, process};

/// The owner gives up earlier, with a reason.
const BOOT_LIMIT: Duration = Duration::from_mins(5);
const IMPORT_LIMIT: Duration = Duration::from_mins(3);

/// Boots a cluster that ends when the returned child's standard input closes.
pub(crate) fn attached(config: &Config) -> Result<(Spec, Child)> {
    let spec = prepare(config)?;
    let _lock = lock(&config.name)?;
    let owner = boot(&spec, true)?;
    Ok((spec, owner))
}

/// Boots a cluster that outlives this process, or brings a running one to what `config` asks for.
pub(crate) fn detached(config: &Config) -> Result<Spec> {
    let wanted = prepare(config)?;
    let _lock = lock(&config.name)?;
    if state::owner(&wanted.state)?.is_none() {
        boot(&wanted, false)?;
        return Ok(wanted);
    }
    let mut spec = Spec::load(&wanted.state)?;
    for (what, has, asked) in [
        (
            "Kubernetes",
            spec.config.kubernetes.to_string(),
            config.kubernetes.to_string(),
        ),
        (
            "kube-proxy",
            spec.config.proxy_mode.to_string(),
            config.proxy_mode.to_string(),
        ),
        ("CNI", spec.config.cni.to_string(), config.cni.to_string()),
        (
            "bridge-nf-call-iptables",
            spec.config.bridge_nf.to_string(),
            config.bridge_nf.to_string(),
        ),
    ] {
        if has != asked {
            let name = &config.name;
            bail!(
                "the cluster {name} is up with {what} {has}, not {asked}: \
                 take it down first (e2e down --name {name}) or give the new one another --name"
            );
        }
    }
    load_images(&mut spec, &wanted.images)?;
    spec.config.product |= config.product;
    spec.save()?;
    let living = lookup::nodes(&spec.state);
    for index in (1..=config.nodes).filter(|index| !living.contains(index)) {
        add_node(&spec, index)?;
    }
    say(format_args!("the cluster {} is up already", config.name));
    Ok(spec)
}

/// Makes everything a cluster needs, and describes it.
fn prepare(config: &Config) -> Result<Spec> {
    config.validate()?;
    packages::ensure()?;
    // Go and cargo build at the same time, because each often keeps only one processor busy. The two Go
    // builds share compiled packages, so they run one after the other.
    let (kubernetes, node_tools, cni, images) = thread::scope(|scope| {
        let images = scope.spawn(|| image::archives(config.product).inspect_err(complain));
        let kubernetes = go::kubernetes(config.kubernetes).inspect_err(complain)?;
        let node_tools = go::node_tools(config.containerd).inspect_err(complain)?;
        let cni = cni::programs(config.cni).inspect_err(complain)?;
        let images = images.join();
        let images = images.map_err(|_| anyhow!("the thread that builds images panicked"))??;
        anyhow::Ok((kubernetes, node_tools, cni, images))
    })?;
    Ok(Spec {
        config: config.clone(),
        state: state::folder(&config.name),
        kubernetes,
        node_tools,
        cni,
        images,
        audit_policy: paths::sources().join("config/audit-policy.yaml"),
    })
}

/// Prints an error at once. It is returned only when the other build ends, perhaps minutes later.
fn complain(error: &anyhow::Error) {
    say(format_args!(
        "a build failed; this command ends when the other builds end: {error:#}"
    ));
}

fn lock(name: &str) -> Result<fs::File> {
    let folder = paths::clusters();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    cache::lock(&state::lock_file(name), &format!("the cluster {name}"))
}

fn boot(spec: &Spec, attached: bool) -> Result<Child> {
    let name = &spec.config.name;
    if state::owner(&spec.state)?.is_some() {
        bail!("the cluster {name} is already up: take it down first (e2e down --name {name})");
    }
    state::prune();
    if spec.state.exists() {
        state::destroy(name).context("sweep what an earlier run left")?;
    }
    let logs = spec.state.join("log");
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    spec.save()?;
    let config = &spec.config;
    let step = Step::start(format!(
        "cluster {name}: Kubernetes {}, {} nodes, kube-proxy in {} mode",
        config.kubernetes, config.nodes, config.proxy_mode
    ));
    let log = spec.log("owner");
    let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let program = config
        .program
        .clone()
        .unwrap_or_else(|| "/proc/self/exe".into());
    let mut command = Command::new(&program);
    command
        .args(RoleName("owner", None).arguments(&spec.state))
        .stdout(Stdio::piped())
        .stderr(file);
    command.current_dir("/"); // a background process must not keep the caller's folder in use
    command.stdin(if attached {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    if attached {
        command.arg("--attached");
    }
    let mut owner = command
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    if let Err(error) = wait_until_up(&mut owner) {
        drop(owner.stdin.take());
        // After a failure it ends by itself; after a time-out the signal ends it.
        if let Ok(pid) = i32::try_from(owner.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = process::wait(&mut owner, Duration::from_secs(20));
        let reply = tail(&log);
        return Err(error.context(format!(
            "cluster {name} did not come up; all logs are in {}, the end of the owner's log:\n{reply}\n",
            logs.display()
        )));
    }
    step.done("up");
    Ok(owner)
}

fn wait_until_up(owner: &mut Child) -> Result<()> {
    let stdout = owner
        .stdout
        .take()
        .context("the owner has no standard output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let start = Instant::now();
    loop {
        match lines.recv_timeout(Duration::from_secs(10)) {
            Ok(line) if line == owner::UP => return Ok(()),
            Ok(line) => {
                let Some(text) = line.strip_prefix(owner::FAILED) else {
                    continue;
                };
                bail!(
                    "{}",
                    serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())
                );
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the owner ended early"),
            Err(RecvTimeoutError::Timeout) if start.elapsed() < BOOT_LIMIT => {
                say(format_args!(
                    "  the cluster boots: {} s",
                    start.elapsed().as_secs()
                ));
            }
            Err(RecvTimeoutError::Timeout) => bail!("not up after {} s", BOOT_LIMIT.as_secs()),
        }
    }
}

/// How long a killed machine may take to end: each of its processes needs processor time for that, and
/// on a busy machine the processes of pods get it last.
const DEATH_LIMIT: Duration = Duration::from_mins(1);
/// How long after the end of a machine its parent may take to record it.
const RECORD_LIMIT: Duration = Duration::from_millis(500);

pub(crate) fn kill_node(spec: &Spec, index: u8) -> Result<()> {
    let name = Machine::Node(index).name();
    let pid = i32::try_from(lookup::pid_of(spec, &name)?).context("pid out of range")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)
        .with_context(|| format!("kill {name} (pid {pid})"))?;
    let end = Instant::now() + DEATH_LIMIT;
    // A zombie has no command line any more, so this is over a moment before its parent has noticed.
    while lookup::find(RoleName("node-init", Some(index)), &spec.state).is_some() {
        if Instant::now() > end {
            bail!("{name} (pid {pid}) is still there {DEATH_LIMIT:?} after SIGKILL");
        }
        thread::sleep(Duration::from_millis(5));
    }
    // Wait for the record of this end, or a later call would take it for the end of the new node. The end
    // of a node that was added later is not recorded: its parent has ended, and init reaps it.
    let record = format!("{name} ended:");
    let records = || fs::read_to_string(spec.state.join("log/ended")).unwrap_or_default();
    let process = PathBuf::from(format!("/proc/{pid}"));
    let mut reaped: Option<Instant> = None;
    while !records().lines().any(|line| line.starts_with(&record)) {
        if reaped.is_none() && !process.exists() {
            reaped = Some(Instant::now());
        }
        if reaped.is_some_and(|since| since.elapsed() > RECORD_LIMIT) {
            break;
        }
        if Instant::now() > end {
            bail!("the cluster did not notice the end of {name} within {DEATH_LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

pub(crate) fn add_node(spec: &Spec, index: u8) -> Result<()> {
    let name = Machine::Node(index).name();
    if index == 0 || index > MAX_NODES {
        bail!("no {name}: nodes are node1 to node{MAX_NODES}");
    }
    if lookup::nodes(&spec.state).contains(&index) {
        bail!("{name} is running already");
    }
    let step = Step::start(format!("{name} joins"));
    // After a power cut the API server still reports the node as Ready for a while.
    let api = Api::new(&spec.state.join(pki::HARNESS))?;
    let node = spec.config.node_name(index);
    let stale = readiness::heartbeat(&api, &node)?;
    // Only ends after this point count.
    let _ = fs::remove_file(spec.state.join("log/ended"));
    let program = match &spec.config.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("find this program")?,
    };
    let mut command = namespaces::enter(lookup::pid_of(spec, "control-plane")?, program);
    command.args(RoleName("add-node", Some(index)).arguments(&spec.state));
    process::run(&mut command, Duration::from_mins(1)).with_context(|| format!("start {name}"))?;
    owner::nothing_missing(spec, &api, &[node], stale.as_deref())?;
    step.done("takes pods");
    Ok(())
}

pub(crate) fn load_images(spec: &mut Spec, archives: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let new: Vec<_> = archives
        .iter()
        .filter(|archive| !spec.images.contains(archive))
        .cloned()
        .collect();
    if new.is_empty() {
        return Ok(new);
    }
    let step = Step::start(format!("{} images on every node", new.len()));
    for index in lookup::nodes(&spec.state) {
        let name = Machine::Node(index).name();
        for archive in &new {
            let ctr = spec.node_tools.join("ctr");
            let mut import = namespaces::enter(lookup::pid_of(spec, &name)?, ctr);
            import
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(archive);
            process::run(&mut import, IMPORT_LIMIT)
                .with_context(|| format!("import {} on {name}", archive.display()))?;
        }
    }
    // A node that joins later must not import an older archive of the same image.
    let kind = |path: &PathBuf| {
        let folder = path
            .parent()
            .and_then(|folder| folder.file_name())
            .unwrap_or_default();
        folder
            .to_string_lossy()
            .rsplit_once('-')
            .map(|(name, _)| name.to_owned())
    };
    spec.images
        .retain(|old| !new.iter().any(|archive| kind(archive) == kind(old)));
    spec.images.extend(new.iter().cloned());
    spec.save()?;
    step.done("imported");
    Ok(new)
}
