//! Start-up: reads the rules in the kernel and the ports that the keeper holds, and holds every
//! mapped port again.

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

/// How long a start waits for the keeper of the same pod.
const KEEPER_START: Duration = Duration::from_secs(30);

/// Reads the rules in the kernel and makes the keeper hold every mapped port. It makes no call to the
/// API server, which may be unreachable.
pub(crate) async fn recover(
    config: &mut RunConfig,
    started: Instant,
) -> anyhow::Result<(BackendMigration, KeeperClient, Recovered)> {
    let tools = Tools::default();
    let settings = settings(config);
    let reading = tokio::task::spawn_blocking(ports_at_once);
    let mut keeper = KeeperClient::connect(&config.keeper_socket, KEEPER_START).await?;
    let mut held = keeper.list().await?;
    let mapped = reading.await.context("read mapped ports over netlink")?;
    // no keeper held the ports: hold those found so far before the slower reads, because until then
    // another process can bind them
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
        "read the rules and held ports of an earlier enforcer; continuing from them"
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

/// Reads all rules of one kind of iptables as text. It runs programs, which take processor time.
async fn saved(flavour: Flavour, tools: &Tools) -> anyhow::Result<Saved> {
    let tools = tools.clone();
    let reading = tokio::task::spawn_blocking(move || Saved::read(flavour, &tools));
    reading.await.context("read the rules")
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
                "iptables chosen (--iptables=auto)"
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
            "cannot subscribe to rule changes; altered rules are found every --check-every only"
        );
    }
    Ok(driver)
}
