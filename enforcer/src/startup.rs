//! What is there already when the enforcer starts: rules in the kernel and ports that the keeper
//! holds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use portmapping_dataplane::glimpse::{Glimpse, Saved, ports_at_once};
use portmapping_dataplane::iptables::{Flavour, Settings};
use portmapping_dataplane::moving::{Backend, Moving};
use portmapping_dataplane::{Dataplane as _, Tools, detect};
use portmapping_enforcer_core::Recovered;
use portmapping_runtime::deadline::chain;

use crate::args::{BackendChoice, IptablesChoice, RunConfig};
use crate::keeper_client::Keeper;
use crate::node_facts::NodeFacts;

/// How long a start waits for the keeper beside it.
const KEEPER_START: Duration = Duration::from_secs(30);

/// Reads what is in the kernel, and has the ports held that are mapped. It needs no API server, which
/// may be away.
pub(crate) async fn take_up(
    config: &mut RunConfig,
    started: Instant,
) -> anyhow::Result<(Moving, Keeper, Recovered)> {
    let tools = Tools::default();
    let settings = settings(config);
    let glancing = tokio::task::spawn_blocking(ports_at_once);
    let mut keeper = Keeper::connect(&config.keeper_socket, KEEPER_START).await?;
    let mut held = keeper.list().await?;
    let mapped = glancing.await.context("read what the kernel tells")?;
    // a predecessor that ended with its ports: those seen first are held before anybody looks on
    let bereft = held.is_empty();
    if bereft {
        held = keeper.hold_again(mapped, held, started).await;
    }
    let legacy = saved(Flavour::Legacy, &tools).await?;
    if bereft {
        held = keeper
            .hold_again(legacy.mapped_ports(), held, started)
            .await;
    }
    let nft = saved(Flavour::Nft, &tools).await?;
    if bereft {
        held = keeper.hold_again(nft.mapped_ports(), held, started).await;
    }
    let glimpse = Glimpse { nft, legacy };
    let mut dataplane = open_dataplane(config, &settings, glimpse, tools)?;
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
    let held = keeper.hold_again(mapped, held, started).await;
    let found = Recovered {
        mappings: observed.mappings,
        intact: observed.intact,
        held,
        in_other_backends: dataplane.elsewhere().clone(),
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
pub(crate) fn note_facts(config: &mut RunConfig) -> anyhow::Result<()> {
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
    glimpse: Glimpse,
    tools: Tools,
) -> anyhow::Result<Moving> {
    let backend = match (config.backend, config.iptables) {
        (BackendChoice::Nftables, _) => Backend::Nftables,
        (BackendChoice::Iptables, IptablesChoice::Nft) => Flavour::Nft.into(),
        (BackendChoice::Iptables, IptablesChoice::Legacy) => Flavour::Legacy.into(),
        (BackendChoice::Iptables, IptablesChoice::Auto) => {
            let detected = detect::detect(glimpse)?;
            tracing::info!(
                iptables = detected.flavour.as_str(),
                reason = detected.reason,
                "chosen"
            );
            detected.flavour.into()
        }
    };
    let driver = Moving::open(backend, settings, tools)?;
    config.core.ipv6 &= driver.has_ipv6();
    if backend.announces()
        && let Err(error) = driver.drift().listen()
    {
        tracing::warn!(
            error = chain(&error),
            "changes of the packet filter are not announced: damage is seen every --check-every only"
        );
    }
    Ok(driver)
}
