//! A directory of results, its follower, and results as the runtime writes them.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portmapping_enforcer::cni::{self, SANDBOX_QUEUE};
use portmapping_enforcer::metrics::Metrics;
use portmapping_enforcer_core::{Sandbox, SandboxUpdate};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in these tests, on a real machine.
const SOON: Duration = Duration::from_mins(1);

/// Returns the longest wait; `PORTMAPPING_TEST_SLOWNESS` says how many times slower this machine is.
fn soon() -> Duration {
    let slowness = std::env::var("PORTMAPPING_TEST_SLOWNESS").ok();
    SOON * slowness.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The second directory in which results are looked for.
const OTHER: &str = "cni/cache/results";

/// A result as libcni writes it.
pub(crate) fn result(id: &str, interface: &str, address: &str) -> String {
    format!(
        r#"{{"kind":"cniCacheV1","containerId":"{id}","config":"e30=","ifName":"{interface}","networkName":"pods","cniArgs":[["K8S_POD_NAME","p"],["K8S_POD_UID","uid-{id}"]],"result":{{"cniVersion":"1.0.0","ips":[{{"address":"{address}"}}]}}}}"#
    )
}

/// The pod's own result: of eth0, at 10.1.0.2.
pub(crate) fn good(id: &str) -> String {
    result(id, "eth0", "10.1.0.2/24")
}

pub(crate) struct Lab {
    root: TempDir,
    pub(crate) updates: mpsc::Receiver<SandboxUpdate>,
    token: CancellationToken,
    follower: JoinHandle<()>,
    registry: Registry,
}

impl Lab {
    /// Follows a directory that exists.
    pub(crate) fn new() -> Self {
        Self::with(|results| fs::create_dir_all(results).unwrap())
    }

    /// Follows a directory that `prepare` creates, or does not.
    pub(crate) fn with(prepare: impl FnOnce(&Path)) -> Self {
        let root = TempDir::new().unwrap();
        let results = root.path().join("cni/results");
        fs::create_dir(root.path().join("cni")).unwrap();
        prepare(&results);
        let (sender, updates) = mpsc::channel(SANDBOX_QUEUE);
        let token = CancellationToken::new();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let dirs = vec![results, root.path().join(OTHER)];
        let follower = tokio::spawn(cni::watch(dirs, sender, metrics, token.clone()));
        Self {
            root,
            updates,
            token,
            follower,
            registry,
        }
    }

    pub(crate) fn parent(&self) -> PathBuf {
        self.root.path().join("cni")
    }

    pub(crate) fn results(&self) -> PathBuf {
        self.parent().join("results")
    }

    /// The second directory of the list, created when it is missing.
    pub(crate) fn other(&self) -> PathBuf {
        let other = self.root.path().join(OTHER);
        fs::create_dir_all(&other).unwrap();
        other
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.results().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.file(name), text).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    pub(crate) async fn next(&mut self) -> SandboxUpdate {
        let update = tokio::time::timeout(soon(), self.updates.recv()).await;
        update.expect("an update comes").expect("the follower runs")
    }

    /// Receives an update of a new sandbox and returns its id; panics on any other update.
    pub(crate) async fn up(&mut self) -> String {
        match self.next().await {
            SandboxUpdate::Up(sandbox) => id(&sandbox),
            other => panic!("{other:?}"),
        }
    }

    /// Receives an update of a removed sandbox and returns its id; panics on any other update.
    pub(crate) async fn down(&mut self) -> String {
        match self.next().await {
            SandboxUpdate::Down(id) => id.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// Receives a list and returns its ids, sorted; panics on any other update.
    pub(crate) async fn listed(&mut self) -> Vec<String> {
        match self.next().await {
            SandboxUpdate::Listed(sandboxes) => {
                let mut ids: Vec<String> = sandboxes.iter().map(id).collect();
                ids.sort();
                ids
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the metrics have this line.
    pub(crate) async fn shows(&self, line: &str) {
        wait_until(|| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
            text.lines().any(|found| found == line)
        })
        .await;
    }

    /// Cancels the follower and waits for its end.
    pub(crate) async fn end(self) {
        self.token.cancel();
        let ended = tokio::time::timeout(soon(), self.follower).await;
        ended.expect("the follower ends").expect("without a panic");
    }
}

fn id(sandbox: &Sandbox) -> String {
    sandbox.id.to_string()
}

/// Waits until a condition is true.
pub(crate) async fn wait_until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(soon(), wait)
        .await
        .expect("the condition becomes true");
}

/// Runs a future on one thread, as the enforcer does.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}
