//! Facts of a node: a long list, and ports that only a privileged process can bind.

use std::fs;
use std::path::Path;
use std::process::Command;

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

#[test]
fn an_enforcer_whose_range_the_keeper_may_not_bind_does_not_start_and_says_why() {
    in_netns(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut enforcer = Command::new(env!("CARGO_BIN_EXE_enforcer"));
        enforcer.args(["run", "--node-name=n1", "--range=1000-2000"]);
        for flag in ["--admin-socket", "--keeper-socket"] {
            enforcer.arg(flag).arg(folder.path().join(flag));
        }
        let output = enforcer.output().unwrap();
        assert!(!output.status.success());
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(
            text.contains("--range 1000-2000 has port 1000")
                && text.contains("ip_unprivileged_port_start"),
            "{text}"
        );
    });
}
