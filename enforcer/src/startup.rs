//! Start-up: reads the rules in the kernel and the ports that the keeper holds, and holds every
//! mapped port again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use portmapping_dataplane::Flavour;
use portmapping_dataplane::detect::{self, Chosen};
use portmapping_dataplane::migration::BackendMigration;
use portmapping_dataplane::snapshot::Snapshot;
use portmapping_dataplane::{Backend, Dataplane as _, Observed, Settings, Tools};
use portmapping_enforcer_core::Recovered;
use portmapping_keeper::RUN_DIR;
use portmapping_runtime::deadline::chain;
use portmapping_shared::PortKey;

use crate::args::{BackendChoice, IptablesChoice, RunConfig};
use crate::keeper_client::{KeeperClient, KeeperClientError};
use crate::masquerade;
use crate::node_facts::NodeFacts;
use crate::reconciler::closed;
use crate::rules_lock::RulesLock;

/// Limit for reading the rules: more than the programs' own, which end them.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// What a start found and chose.
pub(crate) struct Start {
    pub(crate) dataplane: BackendMigration,
    pub(crate) backend: Chosen,
    pub(crate) found: Recovered,
    /// The right to change the rules.
    pub(crate) rules: RulesLock,
}

/// Takes the right to change the rules, reads them, and makes the keeper hold every mapped port. It makes
/// no call to the API server, which may be unreachable.
pub(crate) async fn recover(
    config: &mut RunConfig,
    keeper: &mut KeeperClient,
    started: Instant,
) -> anyhow::Result<Start> {
    let tools = Tools::default();
    let settings = settings(config);
    let taking = tokio::task::spawn_blocking(|| RulesLock::take(Path::new(RUN_DIR)));
    let rules = taking.await.context("take the right to change the rules")?;
    let reading = read_rules(&tools, &settings);
    let held = match keeper.list().await {
        // since the connection was opened; this one holds nothing yet
        Err(KeeperClientError::Restarted { .. }) => keeper.list().await?,
        listed => listed?,
    };
    let snapshot = reading.await?;
    // before anything that can fail: until then another process can bind a port that no keeper holds
    let mapped = snapshot.mappings();
    let mapped: BTreeSet<PortKey> = mapped
        .map(|mapping| (mapping.protocol, mapping.host_port))
        .collect();
    let held = keeper.reacquire(&mapped, held, started).await;
    let backend = choose_backend(config, &settings, &snapshot, &tools)?;
    let (dataplane, observed) = open_dataplane(config, &settings, snapshot, tools, &backend)?;
    let (mappings, ports) = (observed.mappings.len(), held.len());
    tracing::info!(
        mappings,
        ports,
        intact = observed.intact,
        "read the rules and held ports of an earlier enforcer; continuing from them"
    );
    // an enforcer that ended right after a change has left connections to the pods before it
    let flows = dataplane.stale_flows();
    flows.found(&observed.mappings);
    // where another program flushed the rules, the connections of living pods go on until the rules are back
    if observed.intact && !observed.mappings.is_empty() {
        flows.found_unmapped(held.difference(&mapped).copied());
    }
    let in_other_backends = dataplane.in_other_backends().clone();
    let found = Recovered {
        mappings: observed.mappings,
        intact: observed.intact,
        host_addresses: observed.host_addresses,
        closed: closed(&observed.obstacles),
        held,
        in_other_backends,
    };
    Ok(Start {
        dataplane,
        backend,
        found,
        rules,
    })
}

/// Reads the rules and opens the backend without a change of a mapping: an enforcer that cannot do this
/// must not take the node over.
pub(crate) async fn rehearse(config: &mut RunConfig) -> anyhow::Result<()> {
    let tools = Tools::default();
    let settings = settings(config);
    let snapshot = read_rules(&tools, &settings).await?;
    let backend = choose_backend(config, &settings, &snapshot, &tools)?;
    open_dataplane(config, &settings, snapshot, tools, &backend).map(drop)
}

/// Starts to read the rules at once, and returns them.
fn read_rules(
    tools: &Tools,
    settings: &Settings,
) -> impl Future<Output = anyhow::Result<Snapshot>> + use<> {
    let (tools, settings) = (tools.clone(), settings.clone());
    let reading = tokio::task::spawn_blocking(move || Snapshot::read(&tools, &settings));
    async {
        let reading = tokio::time::timeout(READ_LIMIT, reading).await;
        reading
            .context("iptables-save does not end: the kernel or its lock hangs; the enforcer ends, and the kubelet starts it again")?
            .context("read the rules")
    }
}

/// Excludes the ports that the kernel reserves, refuses a range that cannot be held, and records whether
/// the node has IPv6.
pub(crate) fn read_node_facts(config: &mut RunConfig) -> anyhow::Result<()> {
    let facts = NodeFacts::read(Path::new("/"))?;
    for note in &facts.notes {
        tracing::info!(note, "a file of the kernel is missing");
    }
    for port in facts.reserved.iter() {
        config.core.excluded.insert(port);
    }
    let range = config.core.range;
    facts.check_privileged(range, &config.core.excluded)?;
    if let Some(ephemeral) = facts.ephemeral
        && ephemeral.first() <= range.last()
        && range.first() <= ephemeral.last()
    {
        tracing::warn!(
            range = %range, ephemeral = %ephemeral,
            "--range overlaps net.ipv4.ip_local_port_range: ports of open outgoing connections are \
             skipped; choose a range outside of it"
        );
    }
    config.core.ipv6 = facts.ipv6;
    Ok(())
}

fn settings(config: &RunConfig) -> Settings {
    Settings {
        excluded: config.core.excluded.clone(),
        neighbours: config.neighbours.clone(),
        masquerade: masquerade::decide(config.masquerade).on,
        selection: config.host_addresses.clone(),
        host_addresses: config
            .host_ips
            .iter()
            .copied()
            .map(|ip| ip.to_canonical())
            .collect(),
        ..Settings::new(config.core.range)
    }
}

fn choose_backend(
    config: &RunConfig,
    settings: &Settings,
    snapshot: &Snapshot,
    tools: &Tools,
) -> anyhow::Result<Chosen> {
    if config.backend != BackendChoice::Nftables
        && let Some(error) = snapshot.interrupted()
    {
        bail!(
            "cannot read the rules of this node: {}; the enforcer ends, and the kubelet starts it again",
            chain(error)
        );
    }
    let only = match config.iptables {
        IptablesChoice::Auto => None,
        IptablesChoice::Nft => Some(Flavour::Nft),
        IptablesChoice::Legacy => Some(Flavour::Legacy),
    };
    let chosen = match (config.backend, only) {
        (BackendChoice::Auto, only) => detect::choose(snapshot, settings, tools, only),
        (BackendChoice::Nftables, _) => Chosen {
            backend: Backend::Nftables,
            reason: "--backend=nftables".to_owned(),
            cause: "flag",
            automatic: false,
        },
        (BackendChoice::Iptables, Some(flavour)) => Chosen {
            backend: flavour.into(),
            reason: "--backend=iptables and --iptables".to_owned(),
            cause: "flag",
            automatic: false,
        },
        (BackendChoice::Iptables, None) => {
            let detected = detect::detect(snapshot)?;
            Chosen {
                backend: detected.flavour.into(),
                reason: format!("--backend=iptables; {}", detected.reason),
                cause: "flag",
                automatic: false,
            }
        }
    };
    tracing::info!(
        backend = chosen.backend.as_str(),
        reason = chosen.reason,
        "backend chosen"
    );
    Ok(chosen)
}

fn open_dataplane(
    config: &mut RunConfig,
    settings: &Settings,
    snapshot: Snapshot,
    tools: Tools,
    chosen: &Chosen,
) -> anyhow::Result<(BackendMigration, Observed)> {
    let backend = chosen.backend;
    let opened = BackendMigration::open(backend, settings, tools, snapshot);
    let (driver, observed) =
        opened.with_context(|| format!("cannot use {backend} ({})", chosen.reason))?;
    config.core.ipv6 &= driver.has_ipv6();
    if backend.announces()
        && let Err(error) = driver.changes().listen()
    {
        tracing::warn!(
            error = chain(&error),
            "cannot subscribe to rule changes; altered rules are found every --check-every only"
        );
    }
    Ok((driver, observed))
}

#[cfg(test)]
mod tests;
