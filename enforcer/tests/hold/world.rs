//! Network namespaces, keeper processes, and a process that tries to bind their ports.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portmapping_enforcer::keeper_client::KeeperClient;
use portmapping_keeper::wire::{HoldOutcome, KeeperRole};
use portmapping_shared::{HostPort, PortKey, Protocol};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// Longest wait for anything in these tests.
pub(crate) fn soon() -> Duration {
    patience(Duration::from_secs(20))
}

/// Returns a limit that an emulated machine can keep: `PORTMAPPING_TEST_SLOWNESS` says how many times
/// slower it is.
pub(crate) fn patience(limit: Duration) -> Duration {
    limit * slowness()
}

pub(crate) fn slowness() -> u32 {
    let slowness = std::env::var("PORTMAPPING_TEST_SLOWNESS").ok();
    slowness.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Address of the node in its namespace, on lo.
pub(crate) const NODE_IP: &str = "10.99.0.1";

/// Runs the body on a thread with a network namespace of its own, lo up, and with it everything
/// the body starts.
pub(crate) fn in_netns<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    let isolated = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip(&format!("addr add {NODE_IP}/32 dev lo"));
        // the limit on ICMP errors would make some probes look unanswered
        fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").unwrap();
        fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0").unwrap();
        body()
    };
    thread::scope(|scope| {
        scope
            .spawn(isolated)
            .join()
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

/// Runs a future on this thread, so that it stays in this thread's network namespace.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Runs `ip` in the namespace of this thread.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Waits until there is a value, and returns it.
pub(crate) fn eventually<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + soon();
    loop {
        if let Some(value) = value() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// `count` ports of a protocol from `first` on.
pub(crate) fn ports(protocol: Protocol, first: u16, count: u16) -> Vec<PortKey> {
    (first..first + count)
        .map(|port| (protocol, HostPort::new(port).unwrap()))
        .collect()
}

/// An unbound socket for the port's protocol.
pub(crate) fn socket(domain: Domain, protocol: Protocol) -> Socket {
    let kind = if protocol == Protocol::Udp {
        Type::DGRAM
    } else {
        Type::STREAM
    };
    Socket::new(domain, kind, None).unwrap()
}

/// Binds as any program of the node would.
pub(crate) fn bind(ip: IpAddr, (protocol, port): PortKey) -> io::Result<Socket> {
    let socket = socket(Domain::for_address(SocketAddr::from((ip, 0))), protocol);
    socket.bind(&SocketAddr::from((ip, port.get())).into())?;
    Ok(socket)
}

/// Binds for both families, or fails.
pub(crate) fn bind_any(port: PortKey) -> io::Result<Socket> {
    bind(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// A directory for sockets and logs, as the kubelet creates it.
pub(crate) struct Node {
    dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// The sockets of keepers in the run directory.
    pub(crate) fn peer_sockets(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.run_dir()) else {
            return Vec::new();
        };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "sock"))
            .collect()
    }

    /// Starts a keeper and waits until it answers.
    pub(crate) fn keeper(&self, name: &str) -> KeeperProcess {
        let keeper = self.spawn(name, &self.run_dir(), &[]);
        drop(keeper.client());
        keeper
    }

    /// Starts a keeper, and makes it active as its enforcer would.
    pub(crate) fn successor(&self, name: &str) -> KeeperProcess {
        let keeper = self.keeper(name);
        keeper.take_over();
        keeper
    }

    /// Starts a keeper; `wrapper` is a command to run it by.
    pub(crate) fn spawn(&self, name: &str, run_dir: &Path, wrapper: &[&str]) -> KeeperProcess {
        let (socket, log) = (
            self.path(&format!("{name}.sock")),
            self.path(&format!("{name}.log")),
        );
        let mut words = wrapper.iter().map(ToString::to_string).collect::<Vec<_>>();
        words.extend([env!("CARGO_BIN_EXE_enforcer").into(), "keep".into()]);
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .arg("--socket")
            .arg(&socket)
            .arg("--run-dir")
            .arg(run_dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        KeeperProcess { child, socket, log }
    }
}

/// A keeper, killed when dropped.
pub(crate) struct KeeperProcess {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

impl KeeperProcess {
    pub(crate) fn client(&self) -> KeeperClient {
        block_on(self.client_in())
    }

    /// The same, inside a future.
    pub(crate) async fn client_in(&self) -> KeeperClient {
        KeeperClient::connect(&self.socket, soon()).await.unwrap()
    }

    pub(crate) fn take_over(&self) {
        let mut client = self.client();
        eventually("the keeper is active", || {
            matches!(block_on(client.take_over()), Ok(KeeperRole::Active)).then_some(())
        });
    }

    /// Holds everything, or panics.
    pub(crate) fn hold(&self, ports: &[PortKey]) {
        let outcomes = block_on(self.client().hold(ports)).unwrap();
        for (port, outcome) in ports.iter().zip(outcomes) {
            let held = format!("{outcome:?}").starts_with("Held");
            assert!(held, "{port:?}: {outcome:?}");
        }
    }

    /// Holds ports whose sockets this process has just closed: a process that another test starts has
    /// copies of them until it executes its program.
    pub(crate) fn hold_when_free(&self, ports: &[PortKey]) {
        eventually("the ports are free", || {
            let outcomes = block_on(self.client().hold(ports)).unwrap();
            let held = outcomes.iter().all(|one| *one == HoldOutcome::Held);
            held.then_some(())
        });
    }

    /// Returns what it holds; None if it is not active.
    pub(crate) fn list(&self) -> Option<Vec<PortKey>> {
        block_on(self.client().list())
            .ok()
            .map(|ports| ports.into_iter().collect())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the keeper ends", || self.child.try_wait().unwrap())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for KeeperProcess {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries to bind each port in turn, without pause, and records every success.
pub(crate) struct Prober {
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<PortKey>>>,
}

impl Prober {
    pub(crate) fn start(ports: Vec<PortKey>) -> Self {
        let (stop, tries) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&tries));
        let prober = move || {
            let mut thefts = Vec::new();
            for port in ports.iter().cycle() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
                if bind_any(*port).is_ok() {
                    thefts.push(*port);
                }
            }
            thefts
        };
        Self {
            stop,
            tries,
            thread: Some(thread::spawn(prober)),
        }
    }

    /// Waits until it has tried `ports` more ports.
    pub(crate) fn round(&self, ports: usize) {
        let enough = self.tries.load(Ordering::Relaxed) + ports as u64;
        eventually("the prober has tried every port", || {
            (self.tries.load(Ordering::Relaxed) >= enough).then_some(())
        });
    }

    /// Stops; panics if it could bind a port. Returns the number of tries.
    pub(crate) fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let thefts = self.thread.take().unwrap().join().unwrap();
        let tries = self.tries.load(Ordering::Relaxed);
        assert!(
            thefts.is_empty(),
            "{} thefts in {tries} tries: {thefts:?}",
            thefts.len()
        );
        tries
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
