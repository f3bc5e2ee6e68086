use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn key(port: u16) -> PortKey {
    (Protocol::Tcp, HostPort::new(port).unwrap())
}

fn full(range: &str) -> FreeList {
    let range: PortRange = range.parse().unwrap();
    let mut list = FreeList::new(range);
    for port in range.ports() {
        list.insert((Protocol::Tcp, port));
    }
    list
}

#[test]
fn the_whole_port_space_fits() {
    let mut list = full("1-65535");
    assert_eq!(list.len(Protocol::Tcp), 65_535);
    let mut rng = StdRng::seed_from_u64(7);
    while let Some(port) = list.pick(Protocol::Tcp, &BTreeSet::new(), &mut rng) {
        list.remove((Protocol::Tcp, port));
        assert!(!list.contains((Protocol::Tcp, port)));
    }
    assert_eq!(list.len(Protocol::Tcp), 0);
}

#[test]
fn each_protocol_has_ports_of_its_own() {
    let list = full("100-109");
    assert_eq!((list.len(Protocol::Tcp), list.len(Protocol::Udp)), (10, 0));
}

#[test]
fn the_pick_is_uniform() {
    let list = full("100-109");
    let mut rng = StdRng::seed_from_u64(1);
    let mut counts = [0_u32; 10];
    for _ in 0..20_000 {
        let port = list
            .pick(Protocol::Tcp, &BTreeSet::new(), &mut rng)
            .unwrap();
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
fn a_pick_needs_one_random_number_when_nearly_all_ports_are_taken() {
    let mut list = full("20000-39999");
    let mut rng = Counting(StdRng::seed_from_u64(5), 0);
    while list.len(Protocol::Tcp) > 20 {
        let port = list
            .pick(Protocol::Tcp, &BTreeSet::new(), &mut rng)
            .unwrap();
        list.remove((Protocol::Tcp, port));
    }
    rng.1 = 0;
    for _ in 0..1000 {
        let port = list
            .pick(Protocol::Tcp, &BTreeSet::new(), &mut rng)
            .unwrap();
        list.remove((Protocol::Tcp, port));
        assert!(list.insert((Protocol::Tcp, port)));
    }
    // now and then a second number, where the first would not be uniform
    assert!(rng.1 < 1100, "{} numbers for 1000 picks", rng.1);
}

proptest! {
    #[test]
    fn the_list_agrees_with_a_plain_set(
        steps in prop::collection::vec((0u8..3, 95u16..112), 0..200),
    ) {
        let mut list = FreeList::new("100-109".parse().unwrap());
        let mut rng = StdRng::seed_from_u64(3);
        let mut plain = BTreeSet::new();
        for (step, port) in steps {
            let in_range = (100..=109).contains(&port);
            match step {
                0 => prop_assert_eq!(list.insert(key(port)), in_range && plain.insert(port)),
                1 => { list.remove(key(port)); plain.remove(&port); }
                _ => {
                    let picked = list.pick(Protocol::Tcp, &BTreeSet::new(), &mut rng).map(HostPort::get);
                    prop_assert!(picked.map_or(plain.is_empty(), |port| plain.contains(&port)));
                }
            }
            prop_assert_eq!(list.len(Protocol::Tcp), plain.len());
            for port in 95..112 {
                prop_assert_eq!(list.contains(key(port)), plain.contains(&port));
            }
        }
    }
}
