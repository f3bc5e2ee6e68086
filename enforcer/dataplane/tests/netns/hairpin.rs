//! Pods that connect to host ports of their own node, with and without iptables rules on bridged
//! packets.

use portmapping_dataplane::Settings;
use portmapping_dataplane::migration::BackendMigration;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{
    self, Backend, CLIENT, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, POD2_V6, at, map, range,
};
use crate::serve::{ask_tcp, ask_udp, serve};

crate::for_each_backend!(
    pod_reaches_itself_with_rules_on_the_bridge,
    pod_reaches_itself_without_rules_on_the_bridge,
    neighbour_keeps_its_address_with_rules_on_the_bridge,
    neighbour_is_masqueraded_without_rules_on_the_bridge,
    bridges_are_found,
    pods_behind_cilium_are_found,
    neighbours_everywhere_are_masqueraded_and_no_damage,
);

fn pod_reaches_itself_with_rules_on_the_bridge(backend: Backend) {
    pod_reaches_itself(backend, "1");
}

fn pod_reaches_itself_without_rules_on_the_bridge(backend: Backend) {
    pod_reaches_itself(backend, "0");
}

fn pod_reaches_itself(backend: Backend, bridge_nf: &str) {
    let lab = lab(bridge_nf);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    lab.driver(backend).reconcile(&[
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ]);
    // with the pod's own address the reply would bypass the node, so the pod sees the bridge's
    // address
    assert_eq!(
        ask_tcp(&lab.pod1, at(NODE, 20000)).unwrap(),
        "pod1 10.88.0.1"
    );
    assert_eq!(
        ask_udp(&lab.pod1, at(NODE, 20000)).unwrap(),
        "pod1 10.88.0.1"
    );
    assert_eq!(
        ask_tcp(&lab.pod1, at(NODE_V6, 20000)).unwrap(),
        "pod1 fd88::1"
    );
}

/// Everything is masqueraded, as on a node whose replies leave past netfilter.
fn neighbours_everywhere_are_masqueraded_and_no_damage(backend: Backend) {
    let lab = lab("1");
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let everywhere = ["0.0.0.0/0", "::/0"].map(|subnet| subnet.parse().unwrap());
    let settings = Settings {
        neighbours: everywhere.to_vec(),
        ..lab::settings_for(range("20000-29999"))
    };
    let mut driver = lab.driver_with(backend, &settings);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)]);
    for (to, masqueraded) in [(NODE, "pod1 10.88.0.1"), (NODE_V6, "pod1 fd88::1")] {
        assert_eq!(ask_tcp(&lab.client, at(to, 20000)).unwrap(), masqueraded);
    }
}

fn neighbour_keeps_its_address_with_rules_on_the_bridge(backend: Backend) {
    let lab = lab("1");
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    lab.driver(backend)
        .reconcile(&[map(Tcp, 20000, POD1, 9040), map(Udp, 20000, POD1, 9040)]);
    let seen = format!("pod1 {POD2}");
    assert_eq!(ask_tcp(&lab.pod2, at(NODE, 20000)).unwrap(), seen);
    assert_eq!(ask_udp(&lab.pod2, at(NODE, 20000)).unwrap(), seen);
}

fn neighbour_is_masqueraded_without_rules_on_the_bridge(backend: Backend) {
    let lab = lab("0");
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let neighbours = vec![
        "10.88.0.0/24".parse().unwrap(),
        "fd88::/64".parse().unwrap(),
    ];
    let settings = Settings {
        neighbours,
        ..lab::settings_for(range("20000-29999"))
    };
    let mut driver = lab.driver_with(backend, &settings);
    driver.reconcile(&[
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ]);
    assert_eq!(
        ask_tcp(&lab.pod2, at(NODE, 20000)).unwrap(),
        "pod1 10.88.0.1"
    );
    assert_eq!(
        ask_udp(&lab.pod2, at(NODE, 20000)).unwrap(),
        "pod1 10.88.0.1"
    );
    assert_eq!(
        ask_tcp(&lab.pod2, at(NODE_V6, 20000)).unwrap(),
        "pod1 fd88::1"
    );
    assert_eq!(
        ask_tcp(&lab.pod1, at(NODE, 20000)).unwrap(),
        "pod1 10.88.0.1"
    );
}

fn bridges_are_found(backend: Backend) {
    let lab = lab("0");
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mappings = [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ];
    let asks = |v4: &str, v6: &str| {
        let seen = format!("pod1 {v4}");
        assert_eq!(ask_tcp(&lab.pod2, at(NODE, 20000)).unwrap(), seen);
        assert_eq!(ask_udp(&lab.pod2, at(NODE, 20000)).unwrap(), seen);
        let seen = format!("pod1 {v6}");
        assert_eq!(ask_tcp(&lab.pod2, at(NODE_V6, 20000)).unwrap(), seen);
        // a client that needs no masquerading keeps its address
        let outside = ask_tcp(&lab.client, at(NODE, 20000)).unwrap();
        assert_eq!(outside, format!("pod1 {CLIENT}"));
    };
    // the CNI makes its bridge for the first pod, after the start of the driver
    lab.node.sh("ip link set br0 down; ip addr flush dev br0");
    let mut driver = lab.driver(backend);
    driver.observe();
    lab.node.sh(
        "ip addr add 10.88.0.1/24 dev br0; ip addr add fd88::1/64 dev br0 nodad; ip link set br0 up",
    );
    driver.reconcile(&mappings);
    asks("10.88.0.1", "fd88::1");
    // a restart finds no damage
    let rules = lab.rules(backend);
    let (settings, tools) = (lab::settings_for(range("20000-29999")), lab::tools());
    let open = || BackendMigration::open(backend, &settings, tools.clone(), lab::snapshot(&tools));
    let (_, found) = lab.node.run(open).unwrap();
    assert!(found.intact, "the first read of a start");
    let mut driver = lab.driver(backend);
    assert!(driver.observe().intact);
    assert_eq!(lab.rules(backend), rules);
    // first the setting of the whole node, then that of one bridge
    bridge_nf(&lab, "1");
    assert!(driver.observe().intact, "no damage to be told of");
    asks(POD2, POD2_V6);
    bridge_nf(&lab, "0");
    assert!(driver.observe().intact);
    asks("10.88.0.1", "fd88::1");
    lab.node
        .sh("ip link set br0 type bridge nf_call_iptables 1 nf_call_ip6tables 1");
    assert!(driver.observe().intact);
    asks(POD2, POD2_V6);
}

fn lab(bridge_nf: &str) -> Lab {
    let lab = Lab::new();
    self::bridge_nf(&lab, bridge_nf);
    lab
}

fn bridge_nf(lab: &Lab, value: &str) {
    for table in ["iptables", "ip6tables"] {
        lab.node
            .set(&format!("net/bridge/bridge-nf-call-{table}"), value);
    }
}

/// Cilium takes a reply from one pod of the node directly to another one, and routes the node's pods to its
/// interface.
fn pods_behind_cilium_are_found(backend: Backend) {
    let lab = lab("1");
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)]);
    let seen = |to: &str| ask_tcp(&lab.pod2, at(to, 20000)).unwrap();
    assert_eq!(seen(NODE), format!("pod1 {POD2}"));
    lab.node
        .sh("ip link add cilium_host type veth peer name cilium_net
         ip link set cilium_host up
         ip link set cilium_net up
         ip addr add 10.88.0.254/32 dev cilium_host
         ip addr add fd88::254/128 dev cilium_host nodad
         ip route add 10.88.0.254 dev cilium_host scope link
         ip route add 10.88.0.0/24 via 10.88.0.254 dev cilium_host metric 9999
         ip route add 10.89.0.0/24 via 10.88.0.254 dev cilium_host
         ip -6 route add fd88::/64 dev cilium_host metric 9999
         ip -6 route add fd89::/64 dev cilium_host");
    assert!(driver.observe().intact, "no damage to be told of");
    assert_eq!(seen(NODE), "pod1 10.88.0.1");
    assert_eq!(seen(NODE_V6), "pod1 fd88::1");
    // only the pods of the node are masqueraded
    let outside = ask_tcp(&lab.client, at(NODE, 20000)).unwrap();
    assert_eq!(outside, format!("pod1 {CLIENT}"));
    for of_another_node in ["10.89.0.0", "fd89::"] {
        assert!(!lab.rules(backend).contains(of_another_node));
    }
    lab.node.sh("ip link del cilium_host");
    assert!(driver.observe().intact);
    assert_eq!(seen(NODE), format!("pod1 {POD2}"));
}
