//! Start-up: reads the rules in the kernel and the ports that the keeper holds, and holds every
//! mapped port again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use portmapping_dataplane::iptables::Flavour;
use portmapping_dataplane::migration::{self, Backend, BackendMigration};
use portmapping_dataplane::snapshot::Snapshot;
use portmapping_dataplane::{Dataplane as _, Observed, Settings, Tools, detect};
use portmapping_enforcer_core::Recovered;
use portmapping_runtime::deadline::chain;
use portmapping_shared::pod::canonical_ip;

use crate::args::{BackendChoice, IptablesChoice, RunConfig};
use crate::keeper_client::KeeperClient;
use crate::node_facts::NodeFacts;

/// Limit for reading the rules: more than the programs' own, which end them.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// Reads the rules in the kernel and makes the keeper hold every mapped port. It makes no call to the
/// API server, which may be unreachable.
pub(crate) async fn recover(
    config: &mut RunConfig,
    keeper: &mut KeeperClient,
    started: Instant,
) -> anyhow::Result<(BackendMigration, Recovered)> {
    let tools = Tools::default();
    let settings = settings(config);
    let reading = read_rules(&tools);
    let held = keeper.list().await?;
    let snapshot = reading.await?;
    // before anything that can fail: until then another process can bind a port that no keeper holds
    let mapped = migration::mappings(&snapshot, &settings);
    let mapped = mapped
        .iter()
        .map(|mapping| (mapping.protocol, mapping.host_port));
    let held = keeper.reacquire(mapped.collect(), held, started).await;
    let (dataplane, observed) = open_dataplane(config, &settings, snapshot, tools)?;
    let (mappings, ports) = (observed.mappings.len(), held.len());
    tracing::info!(
        mappings,
        ports,
        intact = observed.intact,
        "read the rules and held ports of an earlier enforcer; continuing from them"
    );
    let in_other_backends = dataplane.in_other_backends().clone();
    let found = Recovered {
        mappings: observed.mappings,
        intact: observed.intact,
        host_addresses: observed.host_addresses,
        held,
        in_other_backends,
    };
    Ok((dataplane, found))
}

/// Reads the rules and opens the backend without a change of a mapping: an enforcer that cannot do this
/// must not take the node over.
pub(crate) async fn rehearse(config: &mut RunConfig) -> anyhow::Result<()> {
    let tools = Tools::default();
    let settings = settings(config);
    let snapshot = read_rules(&tools).await?;
    open_dataplane(config, &settings, snapshot, tools).map(drop)
}

/// Starts to read the rules at once, and returns them.
fn read_rules(tools: &Tools) -> impl Future<Output = anyhow::Result<Snapshot>> + use<> {
    let tools = tools.clone();
    let reading = tokio::task::spawn_blocking(move || Snapshot::read(&tools));
    async {
        let reading = tokio::time::timeout(READ_LIMIT, reading).await;
        reading
            .context("iptables-save does not end: the kernel or its lock hangs; the enforcer ends, and the kubelet starts it again")?
            .context("read the rules")
    }
}

/// Excludes the ports that the kernel reserves, and records whether the node has IPv6.
pub(crate) fn read_node_facts(config: &mut RunConfig) -> anyhow::Result<()> {
    let facts = NodeFacts::read(Path::new("/"))?;
    for note in &facts.notes {
        tracing::info!(note, "a file of the kernel is missing");
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
        selection: config.host_addresses.clone(),
        host_addresses: config.host_ips.iter().copied().map(canonical_ip).collect(),
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
                "iptables chosen (--iptables=auto)"
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
            "cannot subscribe to rule changes; altered rules are found every --check-every only"
        );
    }
    Ok((driver, observed))
}
