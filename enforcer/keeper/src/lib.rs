//! The keeper: the one process that binds and holds host ports.
//!
//! It runs in a container of its own in the enforcer's pod and outlives the enforcer: when the
//! enforcer crashes, every port stays held. It holds the ports that the enforcer asks for, and in a
//! rolling update it passes all of them to the keeper of the next pod.
//!
//! It owns the sockets, the protocol with the enforcer ([`wire`]) and the protocol between keepers.
//! It must not know pods, rules or the API server, and it makes no decisions. It uses blocking calls
//! and a few threads, without tokio and without kube: a change here interrupts every held port of a
//! node, so this crate changes as rarely as possible.
//!
//! ```text
//! enforcer <--wire: requests, replies--> control --> table --> bind    one socket per held port
//!                                                      ^
//! next keeper <--sockets (SCM_RIGHTS)-- handover ------+
//!      |                                   |
//!      +-----> run_dir <---- peers --------+    /run/portmapping: how keepers find each other
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use portmapping_shared::PortRange;
use rustix::net::SocketType;

mod bind;
mod control;
mod ended;
mod error;
mod handover;
mod limit;
mod peers;
mod run_dir;
mod socket;
mod table;
pub mod wire;

pub use ended::{EndError, Ended, wait_for_end};
pub use error::KeeperError;

use bind::HeldPort;
use peers::Peers;
use run_dir::RunDir;
pub use run_dir::lock_file;
use socket::Published;
use table::PortTable;

/// Default path of the unix socket on which the enforcer talks to its keeper.
pub const DEFAULT_SOCKET: &str = "/run/enforcer/keeper.sock";

/// How long a starting keeper waits for another keeper that is also starting.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a terminating keeper waits for a running handover to end: as long as one may take.
const HANDOVER_END_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed `accept`, so that a lasting failure does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Stack size of a thread, bytes; no thread has deep calls.
const STACK: usize = 256 * 1024;

/// The directory of the node that all keepers and enforcers share.
pub const RUN_DIR: &str = "/run/portmapping";

/// Flags of `enforcer keep`.
#[derive(Clone, Debug, clap::Args)]
pub struct KeeperArgs {
    /// Unix socket for the enforcer, in a directory that only this pod mounts
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Directory of the node in which keepers find each other, to hand over their ports
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// Host ports that must fit into the limit of open files; set it to the enforcer's --range
    #[arg(
        long,
        value_name = "PORTS",
        env = "PORTMAPPING_RANGE",
        value_delimiter = ',',
        default_value = "20000-29999"
    )]
    pub range: Vec<PortRange>,
    /// How long a keeper that ends waits for the next one, to hand its ports over; 0 where an update ends a
    /// pod before it creates the next one (maxSurge: 0). For more than 20, the pod needs more than 40 s of
    /// terminationGracePeriodSeconds
    // In a rolling update Kubernetes deletes a pod that is not ready as soon as the next one exists, which may
    // have to wait for its image. With HANDOVER_END_TIMEOUT it stays below the pod's grace period (40 s), of
    // which the enforcer's own end takes up to 15 s.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PORTMAPPING_SUCCESSOR_WAIT",
        default_value_t = 20,
        value_parser = clap::value_parser!(u64).range(..=600)
    )]
    pub successor_wait: u64,
}

/// Holds ports until SIGTERM or SIGINT, waits for a keeper that takes
/// them over, then removes its socket files and returns.
///
/// Call it from the main thread before any other thread starts: threads inherit the blocked
/// signals, and a thread that does not block them would end the process at once.
pub fn run(args: KeeperArgs) -> Result<(), KeeperError> {
    let KeeperArgs {
        socket,
        run_dir,
        range,
        successor_wait,
    } = args;
    let room = limit::raise(&range)?;
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| setup("signals", errno.into()))?;
    let run_dir = RunDir::open(&run_dir)?;
    refuse_second(&socket)?;

    let peers = Arc::new(Peers::new(PortTable::new(room, HeldPort::bind), run_dir));
    let _published = start(&socket, &peers)?;
    let signal = signals
        .wait()
        .map_err(|errno| setup("signals", errno.into()))?;
    tracing::info!(%signal, "the keeper ends; waiting for a successor first if ports are held");
    peers.table.end();
    peers
        .table
        .await_successor(Duration::from_secs(successor_wait));
    peers.table.await_handover_end(HANDOVER_END_TIMEOUT);
    Ok(())
}

/// Finds the other keepers of the node, then listens for them and for the enforcer.
fn start(control: &Path, peers: &Arc<Peers>) -> Result<[Published; 2], KeeperError> {
    let (listener, as_peer) = peers.start()?;
    let serve = {
        let peers = Arc::clone(peers);
        move || peers::serve_peers(&listener, &peers)
    };
    spawn("peers", serve)?;
    let follow = {
        let peers = Arc::clone(peers);
        move || peers.follow()
    };
    spawn("takeover", follow)?;

    let listening = socket::listen(control, SocketType::STREAM);
    let (listener, as_keeper) = listening.map_err(|source| KeeperError::Listen {
        path: control.to_owned(),
        source,
    })?;
    let peers = Arc::clone(peers);
    let instance = rand::random();
    spawn("control", move || {
        control::serve(&listener, &peers, instance);
    })?;
    tracing::info!(socket = %control.display(), "the keeper accepts requests");
    Ok([as_peer, as_keeper])
}

/// Fails if a keeper already listens at `path`. A socket file that a dead keeper left is replaced
/// later.
fn refuse_second(path: &Path) -> Result<(), KeeperError> {
    match socket::connect(path, SocketType::STREAM, LOCK_TIMEOUT) {
        Ok(_) => Err(KeeperError::AlreadyRunning {
            path: path.to_owned(),
        }),
        Err(_) => Ok(()),
    }
}

fn spawn(what: &'static str, run: impl FnOnce() + Send + 'static) -> Result<(), KeeperError> {
    let builder = thread::Builder::new().name(what.into()).stack_size(STACK);
    builder
        .spawn(run)
        .map(drop)
        .map_err(|source| setup(what, source))
}

fn setup(what: &'static str, source: io::Error) -> KeeperError {
    KeeperError::Setup { what, source }
}
