//! A directory of results, somebody who follows it, and results as the runtime writes them.

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

/// Longest wait for anything in these tests.
const SOON: Duration = Duration::from_mins(1);

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
    /// Follows a directory that is there.
    pub(crate) fn new() -> Self {
        Self::with(|results| fs::create_dir_all(results).unwrap())
    }

    /// Follows a directory that is prepared first, or left missing.
    pub(crate) fn with(prepare: impl FnOnce(&Path)) -> Self {
        let root = TempDir::new().unwrap();
        let results = root.path().join("cni/results");
        fs::create_dir(root.path().join("cni")).unwrap();
        prepare(&results);
        let (sender, updates) = mpsc::channel(SANDBOX_QUEUE);
        let token = CancellationToken::new();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let follower = tokio::spawn(cni::watch(results, sender, metrics, token.clone()));
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
        let update = tokio::time::timeout(SOON, self.updates.recv()).await;
        update.expect("news come soon").expect("somebody follows")
    }

    /// The id of the sandbox that is up next; anything else is a mistake.
    pub(crate) async fn up(&mut self) -> String {
        match self.next().await {
            SandboxUpdate::Up(sandbox) => id(&sandbox),
            other => panic!("{other:?}"),
        }
    }

    /// The id of the sandbox that is down next; anything else is a mistake.
    pub(crate) async fn down(&mut self) -> String {
        match self.next().await {
            SandboxUpdate::Down(id) => id.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// The ids in the list that comes next, sorted; anything else is a mistake.
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

    /// A line of the metrics, once it shows this value.
    pub(crate) async fn shows(&self, line: &str) {
        wait_until(|| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
            text.lines().any(|found| found == line)
        })
        .await;
    }

    /// Ends the follower, which must not wait for anything.
    pub(crate) async fn end(self) {
        self.token.cancel();
        let ended = tokio::time::timeout(SOON, self.follower).await;
        ended.expect("it ends soon").expect("it ends well");
    }
}

fn id(sandbox: &Sandbox) -> String {
    sandbox.id.to_string()
}

/// Looks again and again until something is so.
pub(crate) async fn wait_until(mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, wait)
        .await
        .expect("it is so soon");
}

/// The runtime of the enforcer: one thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}
