use proptest::prelude::*;

use super::*;

fn mapping((owner, port, last): (u8, u16, u8)) -> Mapping {
    Mapping {
        protocol: portmapping_shared::Protocol::Tcp,
        host_port: portmapping_shared::HostPort::new(20_000 + port).unwrap(),
        host_ip: None,
        pod_ip: std::net::Ipv4Addr::new(10, 244, 0, last).into(),
        container_port: portmapping_shared::ContainerPort::new(80).unwrap(),
        owner: format!("uid-{owner}").parse().unwrap(),
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_plain_set(
        steps in prop::collection::vec((0u8..3, (0u8..3, 0u16..3, 0u8..2)), 0..60),
    ) {
        let mut table = MappingTable::default();
        let mut plain = BTreeSet::new();
        for (step, which) in steps {
            let mapping = mapping(which);
            match step {
                0 => { table.insert(mapping.clone()); plain.insert(mapping); }
                1 => { table.remove(&mapping); plain.remove(&mapping); }
                _ => {
                    table.replace(&mapping.owner, [mapping.clone()].into());
                    plain.retain(|m: &Mapping| m.owner != mapping.owner);
                    plain.insert(mapping);
                }
            }
            prop_assert_eq!(table.iter().cloned().collect::<BTreeSet<_>>(), plain.clone());
            prop_assert_eq!(table.len(), plain.len());
            let owners: BTreeSet<&PodUid> = plain.iter().map(|m| &m.owner).collect();
            prop_assert!(table.owners().eq(owners));
            for port in 0..3 {
                let key = port_of(&self::mapping((0, port, 0)));
                prop_assert_eq!(table.uses(key), plain.iter().any(|m| port_of(m) == key));
            }
        }
        prop_assert_eq!(&table, &plain.into_iter().collect());
    }
}
