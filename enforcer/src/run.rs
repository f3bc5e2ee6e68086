//! `enforcer run`: starts every part and connects them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use parking_lot::Mutex;
use portmapping_dataplane::{AddressSelection, Dataplane as _};
use portmapping_enforcer_core::NodeState;
use portmapping_keeper::wire::KeeperRole;
use portmapping_runtime::client::ApiServer;
use portmapping_runtime::{Readiness, Supervisor, admin};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::args::{RunArgs, RunConfig};
use crate::cni::{self, SANDBOX_QUEUE};
use crate::health::{Routers, admin_listener};
use crate::keeper_client::follow_role;
use crate::metrics::Metrics;
use crate::node_addresses;
use crate::pods::{self, POD_QUEUE};
use crate::publish::Publisher;
use crate::reconciler::{Drivers, Inputs, Reconciler};
use crate::startup::{read_node_facts, recover};

/// Longest silence on a watch before its connection is closed. The API server sends a bookmark every
/// minute.
const WATCH_SILENCE: Duration = Duration::from_secs(295);
/// Longest silence on the connection of a call: longer than the limit of every call.
const CALL_SILENCE: Duration = Duration::from_secs(15);
/// Requests for `/state` that may wait. When the queue is full, the next one waits for its own time
/// limit.
const STATE_QUEUE: usize = 4;

/// Limit for calls in progress at the end: less than the pod's termination grace period.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// Runs `enforcer run` until SIGTERM or SIGINT.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let config = RunConfig::try_from(args)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(config));
    // a change in progress may finish; a program that hangs must not keep the enforcer from ending
    runtime.shutdown_timeout(EXIT_LIMIT);
    outcome
}

/// Returns the tokio runtime of every subcommand.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // one thread: the program mostly waits, and each further thread costs memory on every node
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the tokio runtime")
}

async fn serve(mut config: RunConfig) -> anyhow::Result<()> {
    let started = Instant::now();
    // a clock before 1970 makes every CNI result newer than what the API says
    config.core.epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut tasks = Supervisor::install().context("cannot install the signal handlers")?;
    let token = tasks.token();
    let readiness = Readiness::default();
    let (kernel_ready, pods_ready) = (readiness.handle("kernel"), readiness.handle("pods"));

    let mut registry = portmapping_runtime::metrics::registry();
    let metrics = Metrics::register(&mut registry);
    let (state_requests, requests) = mpsc::channel(STATE_QUEUE);
    let routers = Routers::new(readiness, registry, state_requests);
    let unix = admin_listener(&config.admin_socket)?;
    tasks.spawn(
        "admin socket",
        admin::serve(unix, routers.unix, token.clone()),
    );
    if let Some(address) = config.metrics_listen {
        let tcp = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--metrics-listen)"))?;
        tasks.spawn("metrics", admin::serve(tcp, routers.tcp, token.clone()));
    }

    read_node_facts(&mut config)?;
    let (dataplane, keeper, found) = recover(&mut config, started).await?;
    let changes = dataplane.changes();
    kernel_ready.ready();
    let state = NodeState::recover(config.core, rand::random(), started.elapsed(), found);

    let api = ApiServer::in_cluster()?;
    let client = api.client(CALL_SILENCE)?;
    let watch_client = api.watch_client(WATCH_SILENCE)?;
    tasks.spawn("cluster CA", api.end_on_new_ca(token.clone()));
    let (pod_sender, pods) = mpsc::channel(POD_QUEUE);
    let (role_sender, role) = watch::channel(KeeperRole::Active);
    let (keeper_lost_sender, keeper_lost) = watch::channel(0);
    let (damage_sender, damage_hints) = watch::channel(0);
    let (addresses_sender, node_addresses) = watch::channel(None);
    let (sandbox_sender, sandboxes) = mpsc::channel(SANDBOX_QUEUE);
    if let Some(dir) = config.cni_results {
        let followed = cni::watch(dir, sandbox_sender, metrics.clone(), token.clone());
        tasks.spawn("CNI results", followed);
    } else {
        tracing::info!("--cni-results is empty: a pod is mapped once its status has an address");
    }
    let drivers = Drivers {
        keeper: Arc::new(tokio::sync::Mutex::new(keeper)),
        stale_flows: dataplane.stale_flows(),
        dataplane: Arc::new(Mutex::new(Box::new(dataplane))),
        publisher: Publisher::new(client.clone(), &config.node),
        client,
        metrics,
    };
    let inputs = Inputs {
        pods,
        role,
        keeper_lost,
        sandboxes,
        damage_hints,
        node_addresses,
        state_requests: requests,
        check_every: config.check_every,
        on_listed: Box::new(move || pods_ready.ready()),
    };
    let followed_role = follow_role(
        config.keeper_socket,
        role_sender,
        keeper_lost_sender,
        token.clone(),
    );
    tasks.spawn("keeper role", followed_role);
    let ending = token.clone();
    tasks.spawn("damage", async move {
        changes.hint(damage_sender, ending).await;
    });
    let node = config.node;
    if config.host_addresses == AddressSelection::Node {
        let (client, node, ending) = (watch_client.clone(), node.clone(), token.clone());
        tasks.spawn("node", async move {
            tokio::select! {
                () = ending.cancelled() => {}
                () = node_addresses::watch(client, &node, addresses_sender) => {}
            }
        });
    }
    let ending = token.clone();
    tasks.try_spawn("pods", async move {
        tokio::select! {
            () = ending.cancelled() => Ok(()),
            ended = pods::watch(watch_client, &node, pod_sender) => ended,
        }
    });
    let reconciler = Reconciler::new(state, drivers, started);
    tasks.try_spawn("reconciler", reconciler.run(inputs, token));
    Ok(tasks.run().await?)
}
