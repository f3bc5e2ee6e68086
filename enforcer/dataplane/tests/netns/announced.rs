//! With iptables-nft and nftables, the kernel announces damage by other programs, and our own
//! changes do not count as damage.

use std::time::{Duration, Instant};

use portmapping_dataplane::Flavour;
use portmapping_dataplane::change_monitor::ChangeMonitor;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::lab::{Backend, Driver, Lab, POD1, POD1_V6, map, patience};

/// How long an announcement may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait until a missing hint counts as none.
const QUIET: Duration = Duration::from_millis(400);

/// The hints of a driver, received on a separate runtime.
struct Hints {
    runtime: tokio::runtime::Runtime,
    changed: watch::Receiver<u64>,
    token: CancellationToken,
}

impl Hints {
    fn of(lab: &Lab, change_monitor: ChangeMonitor) -> Self {
        lab.node.run(|| change_monitor.listen()).expect("listen");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .expect("runtime");
        let (sender, changed) = watch::channel(0);
        let token = CancellationToken::new();
        let ending = token.clone();
        runtime.spawn(async move { change_monitor.hint(sender, ending).await });
        Self {
            runtime,
            changed,
            token,
        }
    }

    fn comes_within(&mut self, patience: Duration) -> bool {
        let hints = &mut self.changed;
        self.runtime
            .block_on(async { tokio::time::timeout(patience, hints.changed()).await })
            .is_ok_and(|changed| changed.is_ok())
    }

    fn settle(&mut self, driver: &mut Driver<'_>) {
        while self.comes_within(patience(QUIET)) {
            driver.observe();
        }
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

fn mappings(count: u16) -> Vec<Mapping> {
    (0..count)
        .map(|n| map(Tcp, 20000 + n, POD1, 9040))
        .collect()
}

#[test]
fn own_changes_raise_no_hint() {
    own_changes_are_recognized(Flavour::Nft.into());
}

#[test]
fn own_changes_of_nftables_raise_no_hint() {
    own_changes_are_recognized(Backend::Nftables);
}

fn own_changes_are_recognized(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    let mut hints = Hints::of(&lab, driver.changes());
    driver.reconcile(&mappings(1));
    hints.settle(&mut driver);
    for n in 0..5 {
        let new = [
            map(Tcp, 25000 + n, POD1, 9040),
            map(Tcp, 25000 + n, POD1_V6, 9040),
        ];
        if n == 0 {
            // the first change of IPv6 makes its jumps one by one
            driver.create(&new);
            hints.settle(&mut driver);
        } else {
            driver.create(&new);
        }
        driver.remove(&new[..1]);
    }
    assert!(
        !hints.comes_within(patience(QUIET)),
        "own changes are not known"
    );
    driver.create(&[map(Udp, 20000, POD1, 9040)]);
    assert!(
        !hints.comes_within(patience(QUIET)),
        "a new tree is not known"
    );
}

#[test]
fn damage_is_announced_and_repaired() {
    let damages = [
        "nft flush ruleset",
        "iptables-nft -t nat -F PORTMAPPING-TCP-0-0",
        "iptables-nft -t nat -D PREROUTING 1",
    ];
    damages_are_announced_and_repaired(Flavour::Nft.into(), &damages);
}

#[test]
fn damage_of_nftables_is_announced_and_repaired() {
    let damages = [
        "nft flush ruleset",
        "nft delete element inet portmapping ports4 { tcp . 20007 }",
        "nft flush chain inet portmapping prerouting",
    ];
    damages_are_announced_and_repaired(Backend::Nftables, &damages);
}

fn damages_are_announced_and_repaired(backend: Backend, damages: &[&str]) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    let mut hints = Hints::of(&lab, driver.changes());
    let desired = mappings(500);
    driver.reconcile(&desired);
    hints.settle(&mut driver);
    for damage in damages {
        lab.node.sh(damage);
        let begun = Instant::now();
        assert!(
            hints.comes_within(patience(PATIENCE)),
            "{damage} was not announced"
        );
        let heard = begun.elapsed();
        driver.repair(&desired);
        let repaired = begun.elapsed();
        println!("{damage}: heard {heard:?} and repaired {repaired:?} after it was done");
        driver.assert_is(&desired.iter().cloned().collect());
        hints.settle(&mut driver);
    }
}

#[test]
fn repeated_damage_is_repaired_with_back_off() {
    let lab = Lab::new();
    let mut driver = lab.driver(Flavour::Nft);
    let mut hints = Hints::of(&lab, driver.changes());
    let desired = mappings(3);
    driver.reconcile(&desired);
    hints.settle(&mut driver);
    let begun = Instant::now();
    let mut repairs = 0;
    // longer where a single damage takes longer
    while begun.elapsed() < Duration::from_secs(4)
        || repairs == 0 && begun.elapsed() < patience(PATIENCE)
    {
        lab.iptables(Flavour::Nft, "-t nat -F PORTMAPPING");
        if hints.comes_within(patience(Duration::from_millis(10))) {
            driver.repair(&desired);
            repairs += 1;
        }
    }
    // without back-off there would be hundreds
    assert!((1..20).contains(&repairs), "{repairs} repairs");
}
