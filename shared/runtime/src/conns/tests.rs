use std::net::IpAddr;
use std::sync::Arc;

use super::{Activity, ConnectionSlot, Connections, Peer};

const MAX: usize = 3;

fn peer(text: &str) -> Peer {
    text.parse::<IpAddr>().unwrap().into()
}

/// Enters a table of `MAX` slots.
fn enter(connections: &mut Connections, address: &str) -> Arc<ConnectionSlot> {
    connections.enter(peer(address), MAX).0
}

fn evicted(slot: &ConnectionSlot) -> bool {
    slot.evicted.is_cancelled()
}

#[test]
fn a_closed_connection_makes_room_without_an_eviction() {
    let mut connections = Connections::default();
    let (one, two) = (
        enter(&mut connections, "10.0.0.1"),
        enter(&mut connections, "10.0.0.1"),
    );
    let three = enter(&mut connections, "10.0.0.1");
    drop(one);
    let (four, evicts) = connections.enter(peer("10.0.0.1"), MAX);
    assert!(!evicts && !evicted(&two) && !evicted(&three));
    let (_five, evicts) = connections.enter(peer("10.0.0.1"), MAX);
    assert!(evicts && evicted(&two));
    drop(two);
    let (_six, evicts) = connections.enter(peer("10.0.0.1"), MAX);
    assert!(evicts, "an evicted connection leaves once, not twice");
    assert!(evicted(&three) && !evicted(&four));
}

#[test]
fn evicts_without_a_request_first_then_the_longest_idle_then_the_oldest_request() {
    let mut connections = Connections::default();
    let busy = enter(&mut connections, "10.0.0.1");
    let request = busy.begin_request();
    let idle = enter(&mut connections, "10.0.0.1");
    drop(idle.begin_request());
    let silent = enter(&mut connections, "10.0.0.1");

    let fourth = enter(&mut connections, "10.0.0.1");
    assert!(evicted(&silent) && !evicted(&idle));
    let _fourth_request = fourth.begin_request();
    let fifth = enter(&mut connections, "10.0.0.1");
    assert!(evicted(&idle) && !evicted(&busy));
    let _fifth_request = fifth.begin_request();
    let _sixth = enter(&mut connections, "10.0.0.1");
    assert!(evicted(&busy), "all are in a request: the oldest goes");
    assert!(!evicted(&fourth) && !evicted(&fifth));
    drop(request);
}

#[test]
fn the_longest_idle_is_the_one_whose_last_request_is_oldest() {
    let mut connections = Connections::default();
    let slots = [(); MAX].map(|()| enter(&mut connections, "10.0.0.1"));
    for index in [1, 0, 2, 1] {
        drop(slots[index].begin_request());
    }
    let _next = enter(&mut connections, "10.0.0.1");
    assert!(evicted(&slots[0]));
    assert!(!evicted(&slots[1]) && !evicted(&slots[2]));
}

#[test]
fn the_peer_with_the_most_connections_loses_one_even_in_a_request() {
    let mut connections = Connections::default();
    let greedy = [(); MAX].map(|()| enter(&mut connections, "10.0.0.66"));
    let _requests = greedy.each_ref().map(|slot| slot.begin_request());

    let other = enter(&mut connections, "10.0.0.1");
    assert!(evicted(&greedy[0]) && !evicted(&greedy[1]) && !evicted(&greedy[2]));
    let _own = enter(&mut connections, "10.0.0.1");
    assert!(
        evicted(&other),
        "two each after this one: no request goes first"
    );
    let _third = enter(&mut connections, "10.0.0.2");
    assert!(evicted(&greedy[1]) && !evicted(&greedy[2]));
}

#[test]
fn a_few_connections_without_a_request_stay_where_a_peer_has_many_with_one() {
    let mut connections = Connections::default();
    let mut enter = || connections.enter(peer("10.0.0.66"), 40).0;
    let idle: Vec<_> = (0..36).map(|_| enter()).collect();
    for slot in &idle {
        drop(slot.begin_request());
    }
    let new: Vec<_> = (0..10).map(|_| enter()).collect();
    let evicted_of = |slots: &[Arc<ConnectionSlot>]| slots.iter().filter(|it| evicted(it)).count();
    assert_eq!((evicted_of(&idle), evicted_of(&new)), (6, 0));
    assert!(
        idle[..6].iter().all(|slot| evicted(slot)),
        "longest idle first"
    );
    let _last = enter();
    assert!(evicted(&new[0]), "a quarter of them is enough");
}

#[test]
fn activity_follows_the_requests() {
    let mut connections = Connections::default();
    let slot = enter(&mut connections, "10.0.0.1");
    assert!(matches!(slot.activity(), Activity::NoRequestYet(_)));
    let (first, second) = (slot.begin_request(), slot.begin_request());
    assert!(matches!(slot.activity(), Activity::Busy(_)));
    drop(first);
    let Activity::Busy(begun) = slot.activity() else {
        panic!("one request is still in progress");
    };
    drop(second);
    assert_eq!(slot.activity(), Activity::Idle(begun));
}

#[test]
fn an_ipv6_network_is_one_peer_and_mapped_addresses_are_ipv4() {
    assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
    assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
    assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
    assert_ne!(peer("10.0.0.2"), peer("10.0.0.1"));
}
