use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn pool(range: &str, excluded: &[u16]) -> PortPool {
    let excluded = excluded
        .iter()
        .filter_map(|port| HostPort::new(*port))
        .collect();
    PortPool::new(range.parse().unwrap(), excluded)
}

fn tcp(port: u16) -> PortKey {
    (Protocol::Tcp, HostPort::new(port).unwrap())
}

fn drain(pool: &mut PortPool, protocol: Protocol) -> Vec<u16> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut ports: Vec<u16> = std::iter::from_fn(|| pool.pick(protocol, &mut rng))
        .map(HostPort::get)
        .collect();
    ports.sort_unstable();
    ports
}

#[test]
fn every_port_but_the_excluded_is_given_once() {
    let mut pool = pool("100-109", &[103, 200]);
    assert_eq!(pool.excluded(), 1);
    assert_eq!(
        drain(&mut pool, Protocol::Tcp),
        [100, 101, 102, 104, 105, 106, 107, 108, 109]
    );
    assert_eq!(pool.free(Protocol::Tcp), 0);
    // protocols have port numbers of their own
    assert_eq!(pool.free(Protocol::Udp), 9);
}

#[test]
fn the_whole_port_space_fits() {
    let mut pool = pool("1-65535", &[]);
    assert_eq!(drain(&mut pool, Protocol::Udp).len(), 65_535);
}

#[test]
fn a_static_host_port_is_not_given_while_a_pod_declares_it() {
    let mut pool = pool("100-101", &[]);
    pool.occupy(tcp(100));
    pool.occupy(tcp(100));
    assert_eq!(drain(&mut pool, Protocol::Tcp), [101]);
    pool.vacate(tcp(100));
    assert_eq!(pool.free(Protocol::Tcp), 0);
    pool.vacate(tcp(100));
    assert_eq!(drain(&mut pool, Protocol::Tcp), [100]);
}

#[test]
fn a_leased_port_that_a_pod_declares_is_free_only_when_both_are_gone() {
    let mut pool = pool("100-100", &[]);
    assert!(pool.take(tcp(100)) && !pool.take(tcp(100)));
    pool.occupy(tcp(100));
    pool.give_back(tcp(100));
    assert_eq!(pool.free(Protocol::Tcp), 0);
    pool.vacate(tcp(100));
    assert_eq!(pool.free(Protocol::Tcp), 1);
}

#[test]
fn a_port_of_an_earlier_range_never_becomes_free() {
    let mut pool = pool("100-101", &[]);
    pool.seize(tcp(5000));
    pool.give_back(tcp(5000));
    pool.give_back(tcp(5001));
    assert_eq!(drain(&mut pool, Protocol::Tcp), [100, 101]);
}

#[test]
fn the_pick_is_uniform() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut counts = [0_u32; 10];
    for _ in 0..20_000 {
        let mut pool = pool("100-109", &[]);
        let port = pool.pick(Protocol::Tcp, &mut rng).unwrap();
        counts[usize::from(port.get() - 100)] += 1;
    }
    // 2000 expected of each; the chance of leaving these bounds is below one in a million
    assert!(
        counts.iter().all(|count| (1780..2220).contains(count)),
        "{counts:?}"
    );
}

/// Counts how often it is asked.
struct Counting(StdRng, usize);

impl rand::TryRng for Counting {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.1 += 1;
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.1 += 1;
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.1 += 1;
        self.0.try_fill_bytes(bytes)
    }
}

#[test]
fn a_pick_probes_no_more_when_nearly_all_are_taken() {
    let mut pool = pool("20000-39999", &[]);
    let mut rng = Counting(StdRng::seed_from_u64(5), 0);
    while pool.free(Protocol::Tcp) > 20 {
        pool.pick(Protocol::Tcp, &mut rng);
    }
    rng.1 = 0;
    for _ in 0..1000 {
        let port = pool.pick(Protocol::Tcp, &mut rng).unwrap();
        pool.give_back((Protocol::Tcp, port));
    }
    // one number a pick, and now and then a second where the first would not be uniform
    assert!(rng.1 < 1100, "{} numbers for 1000 picks at 99.9%", rng.1);
}

proptest! {
    #[test]
    fn the_pool_agrees_with_plain_sets(steps in prop::collection::vec((0u8..5, 95u16..112), 0..200)) {
        let mut pool = pool("100-109", &[104]);
        let mut rng = StdRng::seed_from_u64(3);
        let mut taken = std::collections::BTreeSet::new();
        let mut occupied: BTreeMap<u16, usize> = BTreeMap::new();
        let usable = |port: u16| (100..=109).contains(&port) && port != 104;
        for (step, port) in steps {
            match step {
                0 => {
                    let free = usable(port) && !taken.contains(&port) && !occupied.contains_key(&port);
                    prop_assert_eq!(pool.take(tcp(port)), free);
                    if free { taken.insert(port); }
                }
                1 => { pool.give_back(tcp(port)); taken.remove(&port); }
                2 => { pool.occupy(tcp(port)); *occupied.entry(port).or_default() += 1; }
                3 => {
                    pool.vacate(tcp(port));
                    if let Some(count) = occupied.get_mut(&port) {
                        *count -= 1;
                        if *count == 0 { occupied.remove(&port); }
                    }
                }
                _ => if let Some(port) = pool.pick(Protocol::Tcp, &mut rng) {
                    let port = port.get();
                    prop_assert!(usable(port) && !occupied.contains_key(&port));
                    prop_assert!(taken.insert(port), "{} given twice", port);
                },
            }
            let free = (95..112).filter(|p| usable(*p) && !taken.contains(p) && !occupied.contains_key(p));
            prop_assert_eq!(pool.free(Protocol::Tcp), free.count());
        }
    }
}
