//! A start after enforcer and keeper have died together: mapped ports that no process holds.

use std::time::Instant;

use portmapping_enforcer::keeper_client::KeeperClient;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::world::{Node, bind_any, block_on, in_netns, ports, soon};

#[test]
fn mapped_ports_are_held_again_except_those_another_process_bound() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let mapped = [ports(Tcp, 20000, 3), ports(Udp, 20000, 3)].concat();
        let (lost, whole) = (mapped[1], [&mapped[..1], &mapped[2..]].concat());
        let other_process = bind_any(lost).unwrap();
        let held = block_on(async {
            let mut client = KeeperClient::connect(&keeper.socket, soon()).await.unwrap();
            let mapped = mapped.iter().copied().collect();
            client
                .reacquire(
                    &mapped,
                    ports(Tcp, 20009, 1).into_iter().collect(),
                    Instant::now(),
                )
                .await
        });
        let wanted = [whole.clone(), ports(Tcp, 20009, 1)].concat();
        assert_eq!(held, wanted.into_iter().collect());
        assert_eq!(keeper.list().unwrap(), whole);
        for port in whole {
            assert!(bind_any(port).is_err(), "{port:?} is free");
        }
        drop(other_process);
    });
}
