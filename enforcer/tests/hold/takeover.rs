//! When a keeper next to another one is active, and what their enforcers receive.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portmapping_enforcer::keeper_client::{KeeperClient, RoleWatch};
use portmapping_keeper::wire::KeeperRole;
use portmapping_shared::Protocol::Tcp;

use crate::handover::{assert_retired_in, bindable, many};
use crate::world::{
    KeeperProcess, Node, Prober, block_on, eventually, in_netns, patience, ports, soon,
};

#[test]
fn a_keeper_whose_enforcer_never_starts_takes_nothing_over() {
    in_netns(|| {
        let node = Node::new();
        let mut old = node.keeper("old");
        old.hold(&many());
        block_on(async {
            let mut watch = RoleWatch::connect(&old.socket, soon()).await.unwrap();
            let new = node.spawn("new", &node.run_dir(), &[]);
            assert_retired_in(&mut new.client_in().await).await;
            // longer than an active keeper may be without enforcer
            let kept = tokio::time::timeout(Duration::from_secs(2), async {
                assert_eq!(watch.next().await.unwrap(), KeeperRole::Active);
                watch.next().await
            });
            assert!(kept.await.is_err(), "the old keeper stays active");
            new.kill();
        });
        assert_eq!(old.list().unwrap(), many());
        // without an enforcer of its own, too, a keeper takes the ports of one that ends
        let prober = Prober::start(bindable());
        let new = node.keeper("new");
        old.signal(Signal::SIGTERM);
        assert!(old.wait().success());
        let held = eventually("the new keeper is active", || new.list());
        assert_eq!(held, many());
        prober.round(2000);
        prober.finish();
    });
}

#[test]
fn the_ports_go_back_when_the_enforcer_of_the_successor_ends() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        let (prober, later) = (Prober::start(bindable()), ports(Tcp, 22000, 5));
        let all = [many(), later.clone()].concat();
        let theirs = |keeper: &KeeperProcess| {
            let mut held = keeper.list()?;
            held.retain(|port| all.contains(port));
            Some(held.len())
        };
        block_on(async {
            let mut watch = RoleWatch::connect(&old.socket, soon()).await.unwrap();
            assert_eq!(watch.next().await.unwrap(), KeeperRole::Active);
            let new = node.spawn("new", &node.run_dir(), &[]);
            for _ in 0..3 {
                let enforcer = RoleWatch::connect(&new.socket, soon()).await.unwrap();
                let mut client = new.client_in().await;
                assert_eq!(client.take_over().await.unwrap(), KeeperRole::Active);
                client.hold(&later).await.unwrap();
                assert_eq!(watch.next().await.unwrap(), KeeperRole::Frozen);
                assert_eq!(watch.next().await.unwrap(), KeeperRole::Retired);
                let ended = Instant::now();
                drop(enforcer);
                assert_eq!(watch.next().await.unwrap(), KeeperRole::Active);
                assert!(
                    ended.elapsed() < patience(Duration::from_secs(2)),
                    "{:?}",
                    ended.elapsed()
                );
                assert_retired_in(&mut client).await;
            }
        });
        assert_eq!(theirs(&old), Some(all.len()));
        prober.finish();
    });
}

#[test]
fn watcher_receives_that_its_keeper_retired() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        block_on(async {
            let mut watch = RoleWatch::connect(&old.socket, soon()).await.unwrap();
            assert_eq!(watch.next().await.unwrap(), KeeperRole::Active);
            let new = node.spawn("new", &node.run_dir(), &[]);
            let mut client = KeeperClient::connect(&new.socket, soon()).await.unwrap();
            client.take_over().await.unwrap();
            assert_eq!(watch.next().await.unwrap(), KeeperRole::Frozen);
            assert_eq!(watch.next().await.unwrap(), KeeperRole::Retired);
            new.kill();
            assert_eq!(watch.next().await.unwrap(), KeeperRole::Active);
        });
        assert_eq!(
            old.list().unwrap(),
            many(),
            "the new keeper died right after the handover: all ports are back"
        );
    });
}
