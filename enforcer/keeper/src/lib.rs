//! The keeper: the one process that binds and holds host ports.
//!
//! It runs beside the enforcer and outlives it, so an enforcer that crashes leaves every port
//! held. It knows nothing of pods and decides nothing: it holds what it is asked to hold, and
//! hands all of it to the keeper that follows in a rolling update. It uses blocking calls and a
//! few threads, and hardly ever changes.
//!
//! ```text
//! enforcer --wire--> control --> table --> bind        one socket per held port
//!                                  ^
//! next keeper <--SCM_RIGHTS-- handover    found through run_dir
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use portmapping_shared::PortRange;
use rustix::net::SocketType;

mod bind;
mod control;
mod error;
mod handover;
mod limit;
mod peers;
mod run_dir;
mod socket;
mod table;
pub mod wire;

pub use error::KeeperError;

use bind::HeldPort;
use run_dir::RunDir;
use socket::Published;
use table::Table;

/// Where the enforcer finds its keeper.
pub const DEFAULT_SOCKET: &str = "/run/enforcer/keeper.sock";

/// How long a start waits for another keeper that is starting, too.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a terminating keeper lets a handover finish.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a keeper that is ended before its successor has come holds on for it. Kubernetes ends a pod
/// whose enforcer is in back-off, or that somebody deleted, as soon as the next one is to start. Together
/// with the above below the pod's grace period, of which the enforcer's own end takes a part.
const LINGER: Duration = Duration::from_secs(6);
/// Pause after a failed accept, which would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Stack of a thread; none of them goes deep.
const STACK: usize = 256 * 1024;

/// Flags of `enforcer keep`.
#[derive(Clone, Debug, clap::Args)]
pub struct KeeperArgs {
    /// Unix socket for the enforcer, in a directory of this pod alone
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Directory of the node in which keepers find each other to hand over their ports
    #[arg(long, value_name = "DIR", default_value = "/run/portmapping")]
    pub run_dir: PathBuf,
    /// Host ports that must fit into the limit of open files; the enforcer's range
    #[arg(
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        default_value = "20000-29999"
    )]
    pub range: Vec<PortRange>,
}

/// Keeps ports until SIGTERM or SIGINT, waits a little for somebody to hand them to, then removes its
/// sockets and returns.
///
/// To be called from the main thread before there is any other: a signal that another thread
/// does not block would end the process at once.
pub fn run(args: KeeperArgs) -> Result<(), KeeperError> {
    let KeeperArgs {
        socket,
        run_dir,
        range,
    } = args;
    let room = limit::raise(&range)?;
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| setup("signals", errno.into()))?;
    let run_dir = Arc::new(RunDir::open(&run_dir)?);
    refuse_second(&socket)?;

    let table = Arc::new(Table::new(room, HeldPort::bind));
    let _published = start(&socket, &table, &run_dir)?;
    let signal = signals
        .wait()
        .map_err(|errno| setup("signals", errno.into()))?;
    tracing::info!(%signal, "ending");
    table.await_successor(LINGER);
    table.settle(SETTLE_TIMEOUT);
    Ok(())
}

/// Takes over, then becomes visible: to the keepers after us, and to the enforcer.
fn start(
    control: &Path,
    table: &Arc<Table>,
    run_dir: &Arc<RunDir>,
) -> Result<[Published; 2], KeeperError> {
    let lock = run_dir
        .lock(Instant::now() + LOCK_TIMEOUT)
        .map_err(|source| setup("the lock of the run directory", source))?;
    let (predecessors, unfinished) = peers::take_over(table, run_dir)?;
    let (listener, as_peer) = run_dir
        .publish()
        .map_err(|source| setup("the socket in the run directory", source))?;
    drop(lock);
    let serve = {
        let (table, run_dir) = (Arc::clone(table), Arc::clone(run_dir));
        move || peers::serve_peers(&listener, &table, &run_dir)
    };
    spawn("peers", serve)?;
    let retry = {
        let (table, run_dir) = (Arc::clone(table), Arc::clone(run_dir));
        move || peers::keep_predecessors(predecessors, unfinished, &table, &run_dir)
    };
    spawn("predecessors", retry)?;

    let listening = socket::listen(control, SocketType::STREAM);
    let (listener, as_keeper) = listening.map_err(|source| KeeperError::Listen {
        path: control.to_owned(),
        source,
    })?;
    let table = Arc::clone(table);
    let instance = rand::random();
    spawn("control", move || {
        control::serve(&listener, &table, instance);
    })?;
    tracing::info!(socket = %control.display(), "keeping");
    Ok([as_peer, as_keeper])
}

/// A leftover file is replaced; a living keeper in the same pod is a mistake.
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
