//! `enforcer run`: wires the parts together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use portmapping_dataplane::Dataplane as _;
use portmapping_enforcer_core::NodeState;
use portmapping_keeper::wire::Duty;
use portmapping_runtime::client::Connections;
use portmapping_runtime::{Readiness, Shutdown, admin, client};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::{RunArgs, RunConfig};
use crate::cni::{self, SANDBOX_QUEUE};
use crate::health::{admin_listener, serve_admin};
use crate::keeper_client::follow_duty;
use crate::metrics::Metrics;
use crate::pods::{self, POD_QUEUE};
use crate::publish::Publisher;
use crate::reconciler::{Drivers, Inputs, Reconciler};
use crate::scheduling;
use crate::startup::{note_facts, take_up};
use crate::state;

/// Longest silence on a watch: the API server sends bookmarks every minute.
const WATCH_SILENCE: Duration = Duration::from_secs(295);
/// The same of a call: longer than each may take.
const CALL_SILENCE: Duration = Duration::from_secs(15);
/// Questions for the state that may wait.
const QUESTION_QUEUE: usize = 4;

/// `enforcer run`.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let config = RunConfig::try_from(args)?;
    if let Err(error) = scheduling::take_short_turns(None) {
        tracing::info!(%error, "the scheduler takes no wishes: starts on a busy node take longer");
    }
    runtime()?.block_on(serve(config))
}

pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // one thread: the work is waiting, and each further thread costs memory on every node
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

async fn serve(mut config: RunConfig) -> anyhow::Result<()> {
    let started = Instant::now();
    let shutdown = Shutdown::install().context("cannot take over signals")?;
    let token = shutdown.token();
    let readiness = Readiness::default();
    let (kernel_ready, pods_ready) = (readiness.handle("kernel"), readiness.handle("pods"));

    let mut registry = portmapping_runtime::metrics::registry();
    let metrics = Metrics::register(&mut registry);
    let (asking, questions) = mpsc::channel(QUESTION_QUEUE);
    let router = admin::router(readiness, Arc::new(registry)).merge(state::router(asking));
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let unix = admin_listener(&config.admin_socket)?;
    tasks.spawn(serve_admin(unix, router.clone(), token.clone()));
    if let Some(address) = config.metrics_listen {
        let tcp = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--metrics-listen)"))?;
        tasks.spawn(serve_admin(tcp, router, token.clone()));
    }

    note_facts(&mut config)?;
    let (dataplane, keeper, found) = take_up(&mut config, started).await?;
    let drift = dataplane.drift();
    kernel_ready.ready();
    let state = NodeState::recover(config.core, rand::random(), started.elapsed(), found);

    let client = client::connect(Connections::Kept, CALL_SILENCE)?;
    let watching = client::connect(Connections::New, WATCH_SILENCE)?;
    let (news, pods) = mpsc::channel(POD_QUEUE);
    let (duty_news, duty) = watch::channel(Duty::Active);
    let (keeper_news, keeper_lost) = watch::channel(0);
    let (damage_news, damage_hints) = watch::channel(0);
    let (sandbox_news, sandboxes) = mpsc::channel(SANDBOX_QUEUE);
    if let Some(dir) = config.cni_results {
        let followed = cni::watch(dir, sandbox_news, metrics.clone(), token.clone());
        tasks.spawn(async move {
            followed.await;
            Ok(())
        });
    } else {
        tracing::info!("--cni-results is empty: pods are mapped by the addresses in their status");
    }
    let drivers = Drivers {
        keeper: Arc::new(tokio::sync::Mutex::new(keeper)),
        dataplane: Arc::new(Mutex::new(Box::new(dataplane))),
        publisher: Publisher::new(client, &config.node),
        metrics,
    };
    let inputs = Inputs {
        pods,
        duty,
        keeper_lost,
        sandboxes,
        damage_hints,
        questions,
        check_every: config.check_every,
        on_listed: Box::new(move || pods_ready.ready()),
    };
    let watched_duty = follow_duty(config.keeper_socket, duty_news, keeper_news, token.clone());
    tasks.spawn(async move {
        watched_duty.await;
        Ok(())
    });
    let ending = token.clone();
    tasks.spawn(async move {
        drift.hint(damage_news, ending).await;
        Ok(())
    });
    let node = config.node;
    let ending = token.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = ending.cancelled() => Ok(()),
            ended = pods::watch(watching, &node, news) => ended.map_err(Into::into),
        }
    });
    let reconciler = Reconciler::new(state, drivers, started);
    let ending = token.clone();
    tasks.spawn(async move { reconciler.run(inputs, ending).await.map_err(Into::into) });
    supervise(tasks, shutdown, token).await
}

/// The first task to fail ends the process; the kernel and the keeper keep every mapping.
pub(crate) async fn supervise(
    mut tasks: JoinSet<anyhow::Result<()>>,
    shutdown: Shutdown,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let work = async {
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended.context("a task ended badly").flatten() {
                token.cancel();
                return Err(error);
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = work => ended,
        () = shutdown.until_forced() => Ok(()),
    }
}
