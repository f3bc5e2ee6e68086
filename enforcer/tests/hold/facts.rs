//! Facts of a node with long settings.

use std::fs;
use std::path::Path;

use portmapping_enforcer::node_facts::NodeFacts;
use portmapping_shared::HostPort;

use crate::world::in_netns;

#[test]
fn long_list_of_reserved_ports_is_read_completely() {
    in_netns(|| {
        // the longest list there can be, in writes that the kernel takes
        let reserved: Vec<u16> = (1..=65535).step_by(2).collect();
        let text = reserved
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
        fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", text).unwrap();
        let facts = NodeFacts::read(Path::new("/")).unwrap();
        assert_eq!(facts.reserved.len(), 32768);
        assert!(facts.reserved.iter().map(HostPort::get).eq(reserved));
        assert!(facts.ipv6);
    });
}
