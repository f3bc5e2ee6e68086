//! What is there already when the enforcer starts: rules in the kernel and ports that the keeper
//! holds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use portmapping_dataplane::iptables::Flavour;
use portmapping_dataplane::migration::{Backend, BackendMigration};
use portmapping_dataplane::snapshot::{Saved, Snapshot, ports_at_once};
use portmapping_dataplane::{Dataplane as _, Settings, Tools, detect};
use portmapping_enforcer_core::Recovered;
use portmapping_runtime::deadline::chain;

use crate::args::{BackendChoice, IptablesChoice, RunConfig};
use crate::keeper_client::KeeperClient;
use crate::node_facts::NodeFacts;

/// How long a start waits for the keeper beside it.
const KEEPER_START: Duration = Duration::from_secs(30);

/// Reads what is in the kernel, and has the ports held that are mapped. It needs no API server, which
/// may be away.
pub(crate) async fn recover(
    config: &mut RunConfig,
    started: Instant,
) -> anyhow::Result<(BackendMigration, KeeperClient, Recovered)> {
    let tools = Tools::default();
    let settings = settings(config);
    let glancing = tokio::task::spawn_blocking(ports_at_once);
    let mut keeper = KeeperClient::connect(&config.keeper_socket, KEEPER_START).await?;
    let mut held = keeper.list().await?;
    let mapped = glancing.await.context("read what the kernel tells")?;
    // a predecessor that ended with its ports: those seen first are held before anybody looks on
    let nothing_held = held.is_empty();
    if nothing_held {
        held = keeper.reacquire(mapped, held, started).await;
    }
    let legacy = saved(Flavour::Legacy, &tools).await?;
    if nothing_held {
        held = keeper.reacquire(legacy.mapped_ports(), held, started).await;
    }
    let nft = saved(Flavour::Nft, &tools).await?;
    if nothing_held {
        held = keeper.reacquire(nft.mapped_ports(), held, started).await;
    }
    let snapshot = Snapshot { nft, legacy };
    let mut dataplane = open_dataplane(config, &settings, snapshot, tools)?;
    let observed = dataplane.observe()?;
    let (mappings, ports) = (observed.mappings.len(), held.len());
    tracing::info!(
        mappings,
        ports,
        intact = observed.intact,
        "taking up what is there"
    );
    let mapped = observed
        .mappings
        .iter()
        .map(|mapping| (mapping.protocol, mapping.host_port))
        .collect();
    let held = keeper.reacquire(mapped, held, started).await;
    let found = Recovered {
        mappings: observed.mappings,
        intact: observed.intact,
        held,
        in_other_backends: dataplane.in_other_backends().clone(),
    };
    Ok((dataplane, keeper, found))
}

/// One kind of iptables as text; programs tell it, beside which nothing is to be in a hurry.
async fn saved(flavour: Flavour, tools: &Tools) -> anyhow::Result<Saved> {
    let tools = tools.clone();
    let reading = tokio::task::spawn_blocking(move || Saved::read(flavour, &tools));
    reading.await.context("read the rules")
}

/// Adds what the kernel says of its ports to the exclusions.
pub(crate) fn read_node_facts(config: &mut RunConfig) -> anyhow::Result<()> {
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
) -> anyhow::Result<BackendMigration> {
    let backend = match (config.backend, config.iptables) {
        (BackendChoice::Nftables, _) => Backend::Nftables,
        (BackendChoice::Iptables, IptablesChoice::Nft) => Flavour::Nft.into(),
        (BackendChoice::Iptables, IptablesChoice::Legacy) => Flavour::Legacy.into(),
        (BackendChoice::Iptables, IptablesChoice::Auto) => {
            let detected = detect::detect(snapshot)?;
            tracing::info!(
                iptables = detected.flavour.as_str(),
                reason = detected.reason,
                "chosen"
            );
            detected.flavour.into()
        }
    };
    let driver = BackendMigration::open(backend, settings, tools)?;
    config.core.ipv6 &= driver.has_ipv6();
    if backend.announces()
        && let Err(error) = driver.changes().listen()
    {
        tracing::warn!(
            error = chain(&error),
            "changes of the packet filter are not announced: damage is seen every --check-every only"
        );
    }
    Ok(driver)
}
