use portmapping_shared::{ContainerPort, HostPort, RequestedPort};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const NOW: Duration = Duration::from_secs(100);
const REST: Duration = Duration::from_secs(30);

fn ports(range: &str, excluded: &[u16]) -> Ports {
    let excluded = excluded.iter().filter_map(|port| HostPort::new(*port));
    let limits = RestLimits {
        pod: 4,
        namespace: usize::MAX,
    };
    Ports::new(range.parse().unwrap(), excluded.collect(), limits)
}

fn tcp(port: u16) -> PortKey {
    (Protocol::Tcp, HostPort::new(port).unwrap())
}

fn pod(n: usize) -> PodRef {
    PodRef {
        namespace: "ns".into(),
        name: format!("pod-{n}"),
        uid: uid(n),
    }
}

fn uid(n: usize) -> PodUid {
    format!("uid-{n}").parse().unwrap()
}

fn waiting(n: usize, wanted: &[WantedPort]) -> WaitingPod {
    WaitingPod {
        pod: pod(n),
        requested: wanted.len(),
        wanted: wanted.to_vec(),
    }
}

fn wanted(container_port: u16) -> WantedPort {
    WantedPort {
        port: RequestedPort {
            container_port: ContainerPort::new(container_port).unwrap(),
            protocol: Protocol::Tcp,
            host_ip: None,
            name: None,
            static_host_port: None,
        },
        previous: None,
        confirmed: false,
        matched: None,
    }
}

/// Gives each pod one port until none is free; the ports in the order of their numbers.
fn allocate_all(ports: &mut Ports) -> Vec<u16> {
    let mut rng = StdRng::seed_from_u64(7);
    let served = (0..).take_while(|n| {
        let waiting = waiting(*n, &[wanted(80)]);
        let outcome = ports.allocate(NOW, &waiting, &BTreeSet::new(), &mut rng);
        outcome.is_ok()
    });
    let served = served.count();
    let mut given: Vec<u16> = (0..served)
        .flat_map(|n| {
            ports
                .leases(&uid(n))
                .iter()
                .map(|lease| lease.host_port.get())
        })
        .collect();
    given.sort_unstable();
    given
}

/// Ends the lease, and all that follows happens at once.
fn end(ports: &mut Ports, n: usize) {
    for lease in ports.leases(&uid(n)).clone() {
        ports.end_lease(NOW, &lease, None, Duration::ZERO, false);
    }
    let (_, to_close) = ports.ask_keeper(NOW);
    ports.closed(NOW, &to_close, REST);
}

#[test]
fn every_port_but_the_excluded_is_given_once() {
    let mut ports = ports("100-109", &[103, 200]);
    let all = [100, 101, 102, 104, 105, 106, 107, 108, 109];
    assert_eq!(allocate_all(&mut ports), all);
    assert_eq!(ports.free(Protocol::Tcp), 0);
    // each protocol has port numbers of its own
    assert_eq!(ports.free(Protocol::Udp), 9);
    assert_eq!(ports.audit(), Ok(()));
}

#[test]
fn a_pod_gets_all_ports_that_it_wants_or_none() {
    let mut ports = ports("100-101", &[]);
    let mut rng = StdRng::seed_from_u64(7);
    let three = [wanted(80), wanted(81), wanted(82)];
    let error = ports
        .allocate(NOW, &waiting(0, &three), &BTreeSet::new(), &mut rng)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("2 TCP ports are free, 3 are needed"),
        "{error}"
    );
    assert_eq!(ports.free(Protocol::Tcp), 2);
}

#[test]
fn a_claimed_port_is_free_when_the_last_claimant_is_gone() {
    let mut ports = ports("100-101", &[]);
    ports.claim(NOW, &uid(1), tcp(100));
    ports.claim(NOW, &uid(2), tcp(100));
    assert_eq!(allocate_all(&mut ports), [101]);
    ports.unclaim(&uid(1), tcp(100));
    assert_eq!(ports.free(Protocol::Tcp), 0);
    ports.unclaim(&uid(2), tcp(100));
    assert_eq!(ports.free(Protocol::Tcp), 1);
    assert!(ports.take_freed());
    assert_eq!(ports.audit(), Ok(()));
}

#[test]
fn a_leased_port_that_a_pod_claims_is_free_when_both_are_gone() {
    let mut ports = ports("100-100", &[]);
    assert_eq!(allocate_all(&mut ports), [100]);
    ports.claim(NOW, &uid(1), tcp(100));
    end(&mut ports, 0);
    assert_eq!(ports.free(Protocol::Tcp), 0);
    ports.unclaim(&uid(1), tcp(100));
    assert_eq!(ports.free(Protocol::Tcp), 1);
}

#[test]
fn a_port_of_an_earlier_range_never_becomes_free() {
    let mut ports = ports("100-101", &[]);
    ports.recover_hold(NOW, tcp(5000), Duration::ZERO, false);
    let (_, to_close) = ports.ask_keeper(NOW);
    assert_eq!(to_close, [tcp(5000)]);
    ports.closed(NOW, &to_close, REST);
    ports.unclaim(&uid(1), tcp(5001));
    assert_eq!(allocate_all(&mut ports), [100, 101]);
}

#[test]
fn a_lost_port_is_asked_for_again_after_a_pause() {
    let mut ports = ports("100-100", &[]);
    allocate_all(&mut ports);
    assert_eq!(ports.ask_keeper(NOW).0, [tcp(100)]);
    assert!(ports.bind_refused(NOW, tcp(100), true, REST));
    assert_eq!(ports.ask_keeper(NOW).0, []);
    let later = ports.next_deadline().unwrap();
    assert_eq!(later, NOW + KEEPER_RETRY);
    assert_eq!(ports.ask_keeper(later).0, [tcp(100)]);
}

proptest! {
    /// Random events in any order. What is derived from the ledger always agrees with it, no pod
    /// ever has a port twice, and a port that is free belongs to no pod.
    #[test]
    fn the_indexes_agree_with_the_ledger(
        steps in prop::collection::vec((0u8..15, 0usize..3, 98u16..106, any::<bool>()), 0..120),
    ) {
        let mut ports = ports("100-104", &[103]);
        let mut rng = StdRng::seed_from_u64(3);
        let mut now = NOW;
        let (mut asked, mut closing) = (Vec::new(), Vec::new());
        for (step, n, port, flag) in steps {
            let key = tcp(port);
            let lease = ports.leases(&uid(n)).first().copied();
            match step {
                0 | 1 => {
                    let previous = Some(key.1).filter(|_| flag);
                    let mut wanted = WantedPort { previous, confirmed: flag, ..wanted(80) };
                    wanted.matched = ports.previous(&pod(n), &wanted);
                    if lease.is_none() {
                        let waiting = waiting(n, &[wanted]);
                        let _ = ports.allocate(now, &waiting, &BTreeSet::new(), &mut rng);
                    }
                }
                2 => if let Some(lease) = lease {
                    ports.end_lease(now, &lease, Some(&pod(n)), REST, flag);
                },
                3 => ports.end_lease_early(now, key, flag),
                4 => ports.rules_removed(now, key),
                5 => ports.claim(now, &uid(n), key),
                6 => ports.unclaim(&uid(n), key),
                7 => {
                    let (to_hold, to_close) = ports.ask_keeper(now);
                    asked.extend(to_hold);
                    closing.extend(to_close);
                }
                8 => if let Some(key) = asked.pop() { ports.bound(now, key) },
                9 => if let Some(key) = asked.pop() { ports.bind_refused(now, key, flag, REST); },
                10 => {
                    ports.keeper_failed(now, &std::mem::take(&mut asked));
                    ports.keeper_failed(now, &std::mem::take(&mut closing));
                }
                11 => ports.closed(now, &std::mem::take(&mut closing), REST),
                12 => ports.keeper_listed(now, &[key].into()),
                13 => ports.ruled(key),
                _ => {
                    now += REST / 2;
                    ports.end_quarantines(now);
                }
            }
            prop_assert_eq!(ports.audit(), Ok(()));
            let all: Vec<LeasedPort> = (0..3).flat_map(|n| ports.leases(&uid(n)).clone()).collect();
            let keys: BTreeSet<PortKey> = all.iter().map(key_of).collect();
            prop_assert_eq!(all.len(), keys.len());
            prop_assert!(keys.iter().all(|key| !ports.free.contains(*key)));
        }
    }
}
