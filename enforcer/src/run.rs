//! `enforcer run`: starts every part and connects them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use parking_lot::Mutex;
use portmapping_dataplane::{AddressSelection, Dataplane as _};
use portmapping_enforcer_core::{NodeState, SandboxUpdate};
use portmapping_keeper::wire::KeeperRole;
use portmapping_runtime::client::ApiServer;
use portmapping_runtime::{EndSignals, Readiness, ReadyHandle, Supervisor, admin};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::args::{RunArgs, RunConfig};
use crate::cni::{self, SANDBOX_QUEUE};
use crate::health::{Routers, admin_listener};
use crate::keeper_client::{KeeperClient, KeeperClientError, follow_role};
use crate::metrics::Metrics;
use crate::node_addresses;
use crate::permission::wait_for_permission;
use crate::pods::{self, POD_QUEUE, PodUpdate};
use crate::publish::Publisher;
use crate::reconciler::{Drivers, Inputs, ReconcileError, Reconciler};
use crate::rules_lock;
use crate::runtime::runtime;
use crate::startup::{read_node_facts, recover, rehearse};
use crate::takeover::{await_turn, first_results, settled_role};

/// Longest silence on a watch before its connection is closed. The API server sends a bookmark every
/// minute.
const WATCH_SILENCE: Duration = Duration::from_secs(155);
/// Longest silence on the connection of a call: longer than the limit of every call.
const CALL_SILENCE: Duration = Duration::from_secs(15);
/// Requests for `/state` that may wait. When the queue is full, the next one waits for its own time
/// limit.
const STATE_QUEUE: usize = 4;

/// How long a start waits for the keeper of the same pod.
const KEEPER_START: Duration = Duration::from_secs(30);

/// How long a signal may take to be seen.
const SIGNAL_DELAY: Duration = Duration::from_millis(20);
/// Limit for calls in progress at the end: less than the pod's termination grace period.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// Runs `enforcer run` until SIGTERM or SIGINT. Starts over in the same process when what it knows is out
/// of date: the kubelet would wait before it starts the container, and in a rolling update Kubernetes ends a
/// pod that is not ready before the next one has started.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let config = RunConfig::try_from(args)?;
    let served_in = runtime()?;
    let mut signals = served_in.block_on(async { EndSignals::install() })?;
    let outcome = served_in.block_on(serve(config));
    // a change in progress may finish; a program that hangs must not keep the enforcer from ending
    served_in.shutdown_timeout(EXIT_LIMIT);
    let Err(error) = outcome else { return Ok(()) };
    if !is_out_of_date(&error) {
        return Err(error);
    }
    match runtime()?.block_on(next_step(&mut signals)) {
        Next::End => Ok(()),
        Next::Fail => Err(error),
        Next::StartOver => {
            tracing::warn!("{error:#}");
            let program = std::env::current_exe().context("cannot find the own program")?;
            let failed = Command::new(program)
                .args(std::env::args_os().skip(1))
                .exec();
            Err(failed).context("cannot start over")
        }
    }
}

/// What follows when this process knows what is out of date.
enum Next {
    /// It starts over.
    StartOver,
    /// It was asked to end.
    End,
    /// It ends, and its container with it.
    Fail,
}

/// A change under way has a lock that would survive `exec`: with one that hangs only the end of the container
/// ends its programs.
async fn next_step(signals: &mut EndSignals) -> Next {
    tokio::select! {
        biased;
        _ = signals.recv() => Next::End,
        // a moment, so that a signal that has come is seen
        () = tokio::time::sleep(SIGNAL_DELAY) => {
            if rules_lock::is_under_way() { Next::Fail } else { Next::StartOver }
        }
    }
}

/// The cluster has a new CA.
#[derive(Debug, thiserror::Error)]
#[error("the cluster's CA has changed: starting over, to use the new one")]
struct NewCa;

/// Returns whether what this process knows is out of date: the keeper's role, the backend that works, or
/// the cluster's CA.
fn is_out_of_date(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<NewCa>()
            || matches!(
                cause.downcast_ref(),
                Some(ReconcileError::RoleReturned | ReconcileError::BackendLost(_))
            )
            || matches!(
                cause.downcast_ref(),
                Some(KeeperClientError::Retired { .. })
            )
    })
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
    let own_pod = config.pod_name.take();
    let own_pod = own_pod.map(|name| (name, readiness.handle("permission")));

    let mut registry = portmapping_runtime::metrics::registry();
    let metrics = Metrics::register(&mut registry);
    let (state_requests, requests) = mpsc::channel(STATE_QUEUE);
    let routers = Routers::new(readiness, registry, state_requests);
    listen(&mut tasks, &config, routers).await?;

    read_node_facts(&mut config)?;
    // first: to the keeper, an enforcer that does not follow its role does not run
    let (mut role, keeper_changes) = follow_keeper(&mut tasks, &config);
    let starting = async {
        let mut keeper = KeeperClient::connect(&config.keeper_socket, KEEPER_START).await?;
        let recovered = if settled_role(&mut role).await == KeeperRole::Active {
            Some(recover(&mut config, &mut keeper, started).await?)
        } else {
            kernel_ready.wait_for("another enforcer is on duty on this node");
            rehearse(&mut config).await?;
            None
        };
        anyhow::Ok((keeper, recovered))
    };
    let Some(started_up) = tasks.during(starting).await? else {
        return Ok(());
    };
    let (mut keeper, recovered) = started_up?;

    let api = ApiServer::in_cluster()?;
    let client = api.client(CALL_SILENCE)?;
    let watch_client = api.watch_client(WATCH_SILENCE)?;
    follow_ca(&mut tasks, api, kernel_ready.clone(), role.clone());
    ask_permission(&mut tasks, own_pod.clone(), client.clone());
    let mut pods = watch_pods(&mut tasks, watch_client.clone(), config.node.clone());
    let mut first_pods = Vec::new();
    let start = if let Some(recovered) = recovered {
        recovered
    } else {
        let turn = async {
            let permission = own_pod.as_ref().map(|(_, ready)| ready);
            first_pods = await_turn(&mut keeper, &mut role, &mut pods, permission).await;
            recover(&mut config, &mut keeper, started).await
        };
        let Some(recovered) = tasks.during(turn).await? else {
            return Ok(());
        };
        recovered?
    };
    let changes = start.dataplane.changes();
    kernel_ready.ready();
    let mut state = NodeState::recover(config.core, rand::random(), started.elapsed(), start.found);

    let (damage_sender, damage_hints) = watch::channel(0);
    let (addresses_sender, node_addresses) = watch::channel(None);
    let mut sandboxes = watch_sandboxes(&mut tasks, config.cni_results, metrics.clone());
    let first_results = first_results(&mut sandboxes).await;
    state.sandboxes_listed(started.elapsed(), first_results);
    let drivers = Drivers {
        keeper: Arc::new(tokio::sync::Mutex::new(keeper)),
        backend: start.backend,
        masquerade: config.masquerade,
        stale_flows: start.dataplane.stale_flows(),
        dataplane: Arc::new(Mutex::new(Box::new(start.dataplane))),
        rules: Arc::new(start.rules),
        publisher: Publisher::new(client.clone(), &config.node),
        client,
        metrics,
    };
    let inputs = Inputs {
        first_pods,
        pods,
        role,
        keeper_changes,
        sandboxes,
        damage_hints,
        node_addresses,
        state_requests: requests,
        check_every: config.check_every,
        on_listed: Box::new(move || pods_ready.ready()),
    };
    let ending = token.clone();
    tasks.spawn("damage", async move {
        changes.hint(damage_sender, ending).await;
    });
    if config.host_addresses == AddressSelection::Node {
        watch_node(
            &mut tasks,
            watch_client,
            config.node.clone(),
            addresses_sender,
        );
    }
    let reconciler = Reconciler::new(state, drivers, started);
    tasks.try_spawn("reconciler", reconciler.run(inputs, token));
    Ok(tasks.run().await?)
}

async fn listen(
    tasks: &mut Supervisor,
    config: &RunConfig,
    routers: Routers,
) -> anyhow::Result<()> {
    let unix = admin_listener(&config.admin_socket)?;
    let token = tasks.token();
    tasks.spawn("admin socket", admin::serve(unix, routers.unix, token));
    if let Some(address) = config.metrics_listen {
        let tcp = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--metrics-listen)"))?;
        let token = tasks.token();
        tasks.spawn("metrics", admin::serve(tcp, routers.tcp, token));
    }
    Ok(())
}

/// Follows the results of the runtime's sandboxes.
fn watch_sandboxes(
    tasks: &mut Supervisor,
    dirs: Vec<PathBuf>,
    metrics: Metrics,
) -> mpsc::Receiver<SandboxUpdate> {
    let (sender, sandboxes) = mpsc::channel(SANDBOX_QUEUE);
    if dirs.is_empty() {
        tracing::info!("--cni-results is empty: a pod is mapped once its status has an address");
    } else {
        tasks.spawn(
            "CNI results",
            cni::watch(dirs, sender, metrics, tasks.token()),
        );
    }
    sandboxes
}

/// Follows the keeper's role, which is unknown (frozen) at first, and counts its connections.
fn follow_keeper(
    tasks: &mut Supervisor,
    config: &RunConfig,
) -> (watch::Receiver<KeeperRole>, watch::Receiver<u64>) {
    let (role_sender, role) = watch::channel(KeeperRole::Frozen);
    let (changes, keeper_changes) = watch::channel(0);
    let socket = config.keeper_socket.clone();
    let followed = follow_role(socket, role_sender, changes, tasks.token());
    tasks.spawn("keeper role", followed);
    (role, keeper_changes)
}

/// Starts over when the cluster's CA has changed; but not after a successor has taken over: this enforcer
/// writes nothing then, and would take the node back.
fn follow_ca(
    tasks: &mut Supervisor,
    api: ApiServer,
    on_duty: ReadyHandle,
    mut role: watch::Receiver<KeeperRole>,
) {
    let (ending, same_ca) = (tasks.token(), tasks.token().child_token());
    tasks.try_spawn("cluster CA", async move {
        api.end_on_new_ca(same_ca).await;
        let settled = ending.run_until_cancelled(settled_role(&mut role)).await;
        if on_duty.is_ready() && settled == Some(KeeperRole::Retired) {
            ending.cancelled().await;
        }
        if ending.is_cancelled() {
            Ok(())
        } else {
            Err(NewCa)
        }
    });
}

/// Asks whether the enforcer may publish results, on its own pod.
fn ask_permission(
    tasks: &mut Supervisor,
    own_pod: Option<(String, ReadyHandle)>,
    client: kube::Client,
) {
    let Some((name, ready)) = own_pod else { return };
    let ending = tasks.token();
    tasks.spawn("permission", async move {
        let permission = wait_for_permission(client, &name, ready);
        ending.run_until_cancelled(permission).await;
    });
}

fn watch_node(
    tasks: &mut Supervisor,
    client: kube::Client,
    node: String,
    addresses: watch::Sender<Option<BTreeSet<IpAddr>>>,
) {
    let ending = tasks.token();
    tasks.spawn("node", async move {
        let watched = node_addresses::watch(client, &node, addresses);
        ending.run_until_cancelled(watched).await;
    });
}

fn watch_pods(
    tasks: &mut Supervisor,
    client: kube::Client,
    node: String,
) -> mpsc::Receiver<PodUpdate> {
    let (sender, pods) = mpsc::channel(POD_QUEUE);
    let ending = tasks.token();
    tasks.spawn("pods", async move {
        let watched = pods::watch(client, &node, sender);
        ending.run_until_cancelled(watched).await;
    });
    pods
}

#[cfg(test)]
mod tests;
