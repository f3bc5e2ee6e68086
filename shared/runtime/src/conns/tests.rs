use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Connections, Peer, Place, Silence};

const SILENCE: Silence = Silence {
    first: Duration::from_secs(1),
    idle: Duration::from_secs(100),
    busy: Duration::from_secs(10),
};

fn enter(connections: &Connections) -> Place {
    connections.enter(Peer::default()).unwrap().0
}

fn gone(place: &Place) -> bool {
    place.evict.is_cancelled()
}

#[test]
fn places_are_given_back() {
    let connections = Connections::new(2);
    let one = enter(&connections);
    let two = enter(&connections);
    assert_eq!(connections.count(), 2);
    drop(one);
    assert_eq!(connections.count(), 1);
    let (_three, evicted) = connections.enter(Peer::default()).unwrap();
    assert!(!evicted && !gone(&two));
}

#[test]
fn who_never_asked_goes_first_then_who_was_idle_longest() {
    let connections = Connections::new(3);
    let old = enter(&connections);
    drop(old.busy());
    let newer = enter(&connections);
    drop(newer.busy());
    let silent = enter(&connections);

    let (fourth, evicted) = connections.enter(Peer::default()).unwrap();
    assert!(evicted && gone(&silent) && !gone(&old));
    drop(fourth.busy());
    let fifth = enter(&connections);
    assert!(gone(&old) && !gone(&newer), "the one idle longest");
    assert_eq!(connections.count(), 3);
    drop((silent, old));
    assert_eq!(connections.count(), 3, "leaving twice counts once");
    drop((newer, fourth, fifth));
    assert_eq!(connections.count(), 0);
}

#[test]
fn nobody_is_thrown_out_in_the_middle_of_a_request() {
    let connections = Connections::new(1);
    let place = enter(&connections);
    let (first, second) = (place.busy(), place.busy());
    assert!(connections.enter(Peer::default()).is_none());
    drop(first);
    assert!(connections.enter(Peer::default()).is_none());
    drop(second);
    assert!(connections.enter(Peer::default()).is_some());
    assert!(gone(&place));
}

#[test]
fn the_limit_of_silence_depends_on_what_is_waited_for() {
    let connections = Connections::new(1);
    let place = enter(&connections);
    let start = Instant::now();
    let limit = || {
        place
            .silent_at(SILENCE)
            .duration_since(start)
            .as_secs_f64()
            .round()
    };
    assert!((limit() - 1.0).abs() < 0.5);
    let busy = place.busy();
    assert!((limit() - 10.0).abs() < 0.5);
    drop(busy);
    assert!((limit() - 100.0).abs() < 0.5);
    enter(&connections);
    assert!(
        place.silent_at(SILENCE) <= Instant::now(),
        "no place, no time"
    );
}

fn peer(text: &str) -> Peer {
    text.parse::<IpAddr>().unwrap().into()
}

#[test]
fn who_has_the_most_gives_up_even_a_busy_one() {
    let connections = Connections::new(3);
    let one = |address| connections.enter(peer(address)).map(|(place, _)| place);
    let greedy: Vec<Place> = (0..3).filter_map(|_| one("10.0.0.66")).collect();
    let busy: Vec<_> = greedy.iter().map(Place::busy).collect();
    assert!(one("10.0.0.66").is_none(), "its own are all at work");

    let first = one("10.0.0.1").expect("a share for everybody");
    assert!(gone(&greedy[0]), "the oldest");
    assert!(!gone(&greedy[1]) && !gone(&greedy[2]));
    let _idle = one("10.0.0.1");
    assert!(gone(&first), "two against two: its own idle one");
    let third = one("10.0.0.2").expect("a share for everybody");
    assert!(gone(&greedy[1]) && !gone(&greedy[2]));
    drop((busy, greedy, first, third));
    assert!(connections.table.lock().peers.len() <= 1);
}

#[test]
fn with_equal_shares_those_who_never_asked_go_first() {
    let connections = Connections::new(2);
    let (served, _) = connections.enter(peer("10.0.0.1")).unwrap();
    drop(served.busy());
    let (silent, _) = connections.enter(peer("10.0.0.2")).unwrap();
    let (_new, evicted) = connections.enter(peer("10.0.0.3")).unwrap();
    assert!(evicted && gone(&silent) && !gone(&served));
}

#[test]
fn a_network_of_ipv6_is_one_peer_and_mapped_addresses_are_ipv4() {
    assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
    assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
    assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
    assert_ne!(peer("10.0.0.2"), peer("10.0.0.1"));
    let address: SocketAddr = "10.0.0.1:99".parse().unwrap();
    assert_eq!(Peer::of(&address), peer("10.0.0.1"));
    assert_eq!(Peer::of(&"a unix socket"), Peer::default());
}
