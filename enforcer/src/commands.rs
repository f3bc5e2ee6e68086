//! What the subcommands wire together.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use portmapping_enforcer_core::{NodeState, Recovered};
use portmapping_runtime::client::Connections;
use portmapping_runtime::deadline::chain;
use portmapping_runtime::{Readiness, ReadyHandle, Shutdown, admin, client};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::{
    ADMIN_SOCKET, BackendChoice, HealthArgs, IptablesChoice, RunArgs, RunConfig, UninstallArgs,
};
use crate::cni::{self, SANDBOX_QUEUE};
use crate::hold::Keeper;
use crate::metrics::Metrics;
use crate::node_facts::NodeFacts;
use crate::pods::{self, POD_QUEUE};
use crate::prompt;
use crate::publish::Publisher;
use crate::reconciler::{Drivers, Inputs, Reconciler, follow_duty};
use crate::state;
use portmapping_dataplane::Settings;
use portmapping_dataplane::iptables::Flavour;
use portmapping_dataplane::migration::{Backend, BackendMigration};
use portmapping_dataplane::snapshot::Snapshot;
use portmapping_dataplane::{Dataplane as _, Observed, Tools, detect};
use portmapping_keeper::{DEFAULT_SOCKET, wire::Duty};

/// How long a start waits for the keeper beside it.
const KEEPER_START: Duration = Duration::from_secs(30);
/// Longest silence on a watch: the API server sends bookmarks every minute.
const WATCH_SILENCE: Duration = Duration::from_secs(295);
/// The same of a call: longer than each may take.
const CALL_SILENCE: Duration = Duration::from_secs(15);
/// How long a health probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// Questions for the state that may wait.
const QUESTION_QUEUE: usize = 4;

/// `enforcer run`.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let config = RunConfig::try_from(args)?;
    if let Err(error) = prompt::take_short_turns(None) {
        tracing::info!(%error, "the scheduler takes no wishes: starts on a busy node take longer");
    }
    runtime()?.block_on(serve(config))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
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
    let drift = dataplane.changes();
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

/// Reads what is in the kernel, and has the ports held that are mapped. It needs no API server, which
/// may be away.
async fn take_up(
    config: &mut RunConfig,
    started: Instant,
) -> anyhow::Result<(BackendMigration, Keeper, Recovered)> {
    let tools = Tools::default();
    let settings = settings(config);
    let reading = tokio::task::spawn_blocking({
        let tools = tools.clone();
        move || Snapshot::read(&tools)
    });
    let mut keeper = Keeper::connect(&config.keeper_socket, KEEPER_START).await?;
    let held = keeper.list().await?;
    let snapshot = reading.await.context("read the rules")?;
    let (dataplane, observed) = open_dataplane(config, &settings, snapshot, tools)?;
    let (mappings, ports) = (observed.mappings.len(), held.len());
    tracing::info!(
        mappings,
        ports,
        intact = observed.intact,
        "taking up what is there"
    );
    let in_other_backends = dataplane.in_other_backends().clone();
    let mapped = observed.mappings.iter().chain(&in_other_backends);
    let mapped = mapped.map(|mapping| (mapping.protocol, mapping.host_port));
    let held = keeper.hold_again(mapped.collect(), held, started).await;
    let found = Recovered {
        mappings: observed.mappings,
        intact: observed.intact,
        held,
        elsewhere: in_other_backends,
    };
    Ok((dataplane, keeper, found))
}

/// The first task to fail ends the process; the kernel and the keeper keep every mapping.
async fn supervise(
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

/// Adds what the kernel says of its ports to the exclusions.
fn note_facts(config: &mut RunConfig) -> anyhow::Result<()> {
    let facts = NodeFacts::read(Path::new("/"))?;
    for note in &facts.notes {
        tracing::info!(note, "about this node");
    }
    for port in facts.reserved.iter() {
        config.core.excluded.insert(port);
    }
    let range = config.core.range;
    if let Some(ephemeral) = facts.ephemeral
        && ephemeral.first() <= range.last()
        && range.first() <= ephemeral.last()
    {
        tracing::warn!(
            range = %range, ephemeral = %ephemeral,
            "the range overlaps the ports of outgoing connections: ports in use by one are skipped; \
             a range outside net.ipv4.ip_local_port_range is better"
        );
    }
    config.core.ipv6 = facts.ipv6;
    Ok(())
}

fn settings(config: &mut RunConfig) -> Settings {
    Settings {
        excluded: config.core.excluded.clone(),
        neighbours: std::mem::take(&mut config.neighbours),
        ..Settings::new(config.core.range)
    }
}

fn open_dataplane(
    config: &mut RunConfig,
    settings: &Settings,
    snapshot: Snapshot,
    tools: Tools,
) -> anyhow::Result<(BackendMigration, Observed)> {
    let backend = match (config.backend, config.iptables) {
        (BackendChoice::Nftables, _) => Backend::Nftables,
        (BackendChoice::Iptables, IptablesChoice::Nft) => Flavour::Nft.into(),
        (BackendChoice::Iptables, IptablesChoice::Legacy) => Flavour::Legacy.into(),
        (BackendChoice::Iptables, IptablesChoice::Auto) => {
            let detected = detect::detect(&snapshot)?;
            tracing::info!(
                iptables = detected.flavour.as_str(),
                reason = detected.reason,
                "chosen"
            );
            detected.flavour.into()
        }
    };
    let (driver, observed) = BackendMigration::open(backend, settings, tools, snapshot)?;
    config.core.ipv6 &= driver.has_ipv6();
    if backend.announces()
        && let Err(error) = driver.changes().listen()
    {
        tracing::warn!(
            error = chain(&error),
            "changes of the packet filter are not announced: damage is seen every --check-every only"
        );
    }
    Ok((driver, observed))
}

/// A socket that an earlier process left behind in this pod is in the way.
fn admin_listener(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    UnixListener::bind(path)
        .with_context(|| format!("cannot listen on {} (--admin-socket)", path.display()))
}

async fn serve_admin<L: axum::serve::Listener>(
    listener: L,
    router: axum::Router,
    token: CancellationToken,
) -> anyhow::Result<()> {
    admin::serve(listener, router, token).await;
    Ok(())
}

/// `enforcer uninstall`.
pub fn uninstall(args: &UninstallArgs) -> anyhow::Result<()> {
    let begun = portmapping_dataplane::uninstall(&Tools::default());
    clear_run_dir(&args.run_dir);
    begun.context("not everything could be removed; run it again")?;
    tracing::info!("every rule, chain and table of ours is gone from this node");
    if args.stay {
        runtime()?.block_on(stay(&args.admin_socket))
    } else {
        Ok(())
    }
}

/// The directory itself may be a mount point of this very pod: it stays where it cannot go.
fn clear_run_dir(run_dir: &Path) {
    for entry in std::fs::read_dir(run_dir).into_iter().flatten().flatten() {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "could not be removed");
        }
    }
    if let Err(error) = std::fs::remove_dir(run_dir) {
        tracing::debug!(%error, path = %run_dir.display(), "left in place");
    }
}

async fn stay(socket: &Path) -> anyhow::Result<()> {
    let shutdown = Shutdown::install().context("cannot take over signals")?;
    let token = shutdown.token();
    let readiness = Readiness::default();
    let done: ReadyHandle = readiness.handle("uninstall");
    done.ready();
    let registry = Arc::new(portmapping_runtime::metrics::registry());
    let router = admin::router(readiness, registry);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_admin(admin_listener(socket)?, router, token.clone()));
    supervise(tasks, shutdown, token).await
}

/// `enforcer health`.
pub fn health(args: &HealthArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        if args.keeper {
            let socket = args.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
            Keeper::connect(socket, PROBE_LIMIT).await?;
            return Ok(());
        }
        let socket = args.socket.as_deref().unwrap_or(Path::new(ADMIN_SOCKET));
        let route = if args.ready { "/readyz" } else { "/healthz" };
        let answer = admin::probe(socket, route, PROBE_LIMIT).await?;
        if answer.status != 200 {
            bail!("{}", answer.body.trim());
        }
        Ok(())
    })
}
