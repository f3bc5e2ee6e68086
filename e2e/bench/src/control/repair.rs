//! Another program alters our rules. Measures how long it takes until the kernel's notification
//! arrives, and until all rules are repaired. iptables-legacy has no notifications, so it is not
//! measured.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portmapping_dataplane::change_monitor::ChangeMonitor;
use portmapping_shared::{Mapping, Protocol};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::lab::{LAST_PORT, Lab, mapping};
use crate::ours::{Backend, ms};
use crate::report::{Bar, Row};
use crate::stats::median;

const SAMPLES: usize = 11;
/// The bar for the time from the start of the program that does the damage, in ms.
const BAR: Bar = Bar::AtMost(50.0);
/// Longest time until a notification arrives.
const PATIENCE: Duration = Duration::from_secs(10);
/// Without a notification for this time, earlier changes and the pause between two reads are over.
const QUIET: Duration = Duration::from_millis(400);

/// Returns rows for the backends with notifications, with `count` mappings present.
pub(super) fn measure(count: u16) -> Result<Vec<Row>> {
    let ports = LAST_PORT - count + 1..=LAST_PORT;
    let desired: BTreeSet<Mapping> = ports
        .map(|port| mapping(Protocol::Tcp, port))
        .collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for (backend, thing, script) in [
        (
            Backend::Nftables,
            "an element",
            format!("nft delete element inet portmapping ports4 '{{ tcp . {LAST_PORT} }}'"),
        ),
        (
            Backend::IptablesNft,
            "a jump",
            "iptables-nft -t nat -D PREROUTING 1".to_owned(),
        ),
    ] {
        let (mut heard, mut repaired) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let (announced, whole) = sample(backend, &desired, &script)?;
            heard.push(announced);
            repaired.push(whole);
        }
        let name = backend.name();
        let title = format!("{name}: {thing} of {count} deleted and back");
        rows.push(Row::new(title, "ms", median(&repaired)).bar(BAR));
        let title = format!("{name}: of that, until it was heard");
        rows.push(Row::new(title, "ms", median(&heard)));
    }
    Ok(rows)
}

/// Takes one sample. Each has its own node and driver, because a driver backs off after repeated
/// damage.
fn sample(backend: Backend, desired: &BTreeSet<Mapping>, damage: &str) -> Result<(f64, f64)> {
    let netns = Lab::new()?.node()?.netns;
    let mut driver = backend.open(&netns)?;
    driver.restore(&netns, desired)?;
    let monitor = driver.changes();
    netns.run(|| monitor.listen().context("listen to changes of rules"))?;
    let mut hints = Hints::of(monitor)?;
    while hints.heard_within(QUIET) {
        driver.verify(&netns, desired)?;
    }
    let start = Instant::now();
    netns.sh(damage)?;
    if !hints.heard_within(PATIENCE) {
        bail!("no notification arrived after: {damage}");
    }
    let heard = ms(start);
    driver.restore(&netns, desired)?;
    let repaired = ms(start);
    driver.verify(&netns, desired)?;
    Ok((heard, repaired))
}

/// Receives the hints to read the rules again, as the enforcer does.
struct Hints {
    runtime: Runtime,
    changed: watch::Receiver<u64>,
    ending: CancellationToken,
}

impl Hints {
    fn of(monitor: ChangeMonitor) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .context("start a runtime")?;
        let (sender, changed) = watch::channel(0);
        let ending = CancellationToken::new();
        let token = ending.clone();
        runtime.spawn(async move { monitor.hint(sender, token).await });
        Ok(Self {
            runtime,
            changed,
            ending,
        })
    }

    fn heard_within(&mut self, patience: Duration) -> bool {
        let changed = &mut self.changed;
        let heard = self
            .runtime
            .block_on(async { timeout(patience, changed.changed()).await });
        matches!(heard, Ok(Ok(())))
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}
