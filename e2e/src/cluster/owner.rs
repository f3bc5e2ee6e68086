//! The owner: the one process in the root namespaces. It keeps the state folder's lock and the relayed
//! listener; when it dies, the kernel kills the cluster's init and with it everything else.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::components::{self, create_log};
use super::config::Spec;
use super::namespaces::Parent;
use super::role_name::RoleName;
use super::{cgroups, namespaces, pki, readiness, state};
use crate::api::Api;
use crate::wait::{self, Probe};

/// What a front end reads from the owner's standard output, a line each.
pub(crate) const UP: &str = "up";
pub(crate) const FAILED: &str = "failed ";

/// What a test process writes to the owner's standard input; the last byte counts when it ends.
pub(crate) const KEEP: u8 = b'k';
pub(crate) const REMOVE: u8 = b'r';

const BOOT_LIMIT: Duration = Duration::from_mins(4);

enum Event {
    /// Asked to end, with the reason.
    Stop(&'static str),
    /// Standard input has ended; whether the folder is to be removed.
    InputEnded {
        remove: bool,
    },
    Booted(Result<()>),
    InitEnded,
}

/// Boots the cluster, reports that it is up, and keeps it until it is asked to end.
pub(crate) fn run(spec: &Spec, attached: bool) -> Result<()> {
    let _lock = state::take(spec)?;
    if !attached {
        // A session of its own: the cluster must not end when the terminal closes.
        nix::unistd::setsid().context("start a session")?;
    }
    let (sender, events) = mpsc::channel();
    watch_signals(&sender)?;
    if attached {
        watch_input(&sender);
    }
    cgroups::sweep(&spec.cgroup(), Duration::from_secs(2));
    let mut init = start(spec)?;
    watch_boot(spec, &sender);
    watch_init(&mut init, &sender);

    let mut outcome = Ok(());
    let mut unwanted = false;
    for event in events {
        match event {
            Event::Booted(Ok(())) => say(UP),
            Event::Booted(Err(error)) => {
                // As JSON, because an error may have several lines.
                let text = serde_json::to_string(&format!("{error:#}")).unwrap_or_default();
                say(&format!("{FAILED}{text}"));
                outcome = Err(error);
                break;
            }
            Event::InitEnded => {
                outcome = Err(anyhow::anyhow!("the cluster's init ended by itself"));
                break;
            }
            Event::Stop(reason) => {
                eprintln!("ending: {reason}");
                break;
            }
            Event::InputEnded { remove } => {
                eprintln!("ending: the process that started this cluster is gone");
                unwanted = remove;
                break;
            }
        }
    }
    // An error means that it has ended. The wait returns when the last process of the namespace has ended.
    let _ = init.kill();
    let _ = init.wait();
    let left = cgroups::sweep(&spec.cgroup(), Duration::from_secs(5));
    if !left.is_empty() {
        eprintln!("could not remove these cgroups: {left:?}");
    } else if unwanted {
        state::remove(&spec.config.name)?;
    }
    outcome
}

fn start(spec: &Spec) -> Result<Child> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on 127.0.0.1")?;
    let port = listener
        .local_addr()
        .context("read the relay's port")?
        .port();
    pki::create(spec, port)?;
    let mut command = Command::new("/proc/self/exe");
    command.args(RoleName("init", None).arguments(&spec.state));
    command
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::piped());
    command.stderr(create_log(spec, "control-plane")?);
    namespaces::spawn(command, Parent::Stays)
}

fn say(line: &str) {
    let mut stdout = std::io::stdout();
    // The front end may have left; the cluster stays.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn watch_signals(sender: &Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("install signal handlers")?;
    let sender = sender.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            let _ = sender.send(Event::Stop("a signal"));
        }
    });
    Ok(())
}

fn watch_input(sender: &Sender<Event>) {
    let sender = sender.clone();
    thread::spawn(move || {
        let mut words = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut words);
        let remove = words.last() == Some(&REMOVE);
        let _ = sender.send(Event::InputEnded { remove });
    });
}

fn watch_init(init: &mut Child, sender: &Sender<Event>) {
    let (stdout, sender) = (init.stdout.take(), sender.clone());
    thread::spawn(move || {
        // Only init has the other end of the pipe, so this read ends when init ends.
        if let Some(mut stdout) = stdout {
            let _ = stdout.read_to_end(&mut Vec::new());
        }
        let _ = sender.send(Event::InitEnded);
    });
}

fn watch_boot(spec: &Spec, sender: &Sender<Event>) {
    let (spec, sender) = (spec.clone(), sender.clone());
    thread::spawn(move || {
        let nodes: Vec<_> = (1..=spec.config.nodes).collect();
        let _ = sender.send(Event::Booted(usable(&spec, &nodes)));
    });
}

/// Waits until the cluster takes pods on these nodes: Ready comes about a second before that.
fn usable(spec: &Spec, nodes: &[u8]) -> Result<()> {
    let api = Api::new(&spec.state.join(pki::HARNESS))?;
    let names: Vec<_> = nodes
        .iter()
        .map(|index| spec.config.node_name(*index))
        .collect();
    nothing_missing(spec, &api, &names, None)
}

/// The same with a client at hand; see [`readiness::missing`] for `stale`.
pub(crate) fn nothing_missing(
    spec: &Spec,
    api: &Api,
    names: &[String],
    stale: Option<&str>,
) -> Result<()> {
    wait::until(
        "the cluster to be usable",
        BOOT_LIMIT,
        Duration::from_millis(50),
        || {
            if let Some(end) = components::first_end(spec) {
                bail!("{end}");
            }
            Ok(match readiness::missing(api, names, stale) {
                Ok(None) => Probe::Done(()),
                Ok(Some(missing)) => Probe::Missing(missing),
                Err(error) => Probe::Missing(format!("{error:#}")),
            })
        },
    )
}
