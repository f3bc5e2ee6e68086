//! Flows follow their mapping; flows of other programs stay unchanged.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use portmapping_shared::Plan;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Backend, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, POD2_V6, at, map, patience};
use crate::serve::{Conversation, UdpClient, ask_tcp, serve};

crate::for_each_backend!(
    client_of_a_moved_port_reaches_the_new_pod,
    client_that_sent_too_early_gets_through,
    client_of_a_moved_port_reaches_the_new_pod_after_a_crash,
    flow_of_a_removed_mapping_ends,
    flow_of_a_mapping_that_was_removed_before_a_crash_ends,
    flow_ends_at_the_next_try_where_the_kernel_refused,
    more_flows_of_a_removed_mapping_than_are_deleted_at_once_end,
    flows_of_others_stay,
    forwarded_flows_of_others_stay_where_any_address_can_be_bound,
    client_in_a_handshake_does_not_reach_the_next_pod_at_the_address,
);

fn client_of_a_moved_port_reaches_the_new_pod(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&[map(Udp, 20000, POD1, 9040), map(Udp, 20000, POD1_V6, 9040)]);
    let v4 = UdpClient::new(&lab.client, at(NODE, 20000));
    let v6 = UdpClient::new(&lab.client, at(NODE_V6, 20000));
    v4.hears("pod1");
    v6.hears("pod1");
    driver.reconcile(&[map(Udp, 20000, POD2, 9040), map(Udp, 20000, POD2_V6, 9040)]);
    v4.hears("pod2");
    v6.hears("pod2");
}

fn client_of_a_moved_port_reaches_the_new_pod_after_a_crash(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let before = [map(Udp, 20000, POD1, 9040), map(Udp, 20000, POD1_V6, 9040)];
    let after = [map(Udp, 20000, POD2, 9040), map(Udp, 20000, POD2_V6, 9040)];
    let mut driver = lab.driver(backend);
    driver.reconcile(&before);
    let v4 = UdpClient::new(&lab.client, at(NODE, 20000));
    let v6 = UdpClient::new(&lab.client, at(NODE_V6, 20000));
    v4.hears("pod1");
    v6.hears("pod1");
    // it ends right after the change
    let change = Plan::new(&after.into(), &before.into());
    driver.apply_only(&change).unwrap();
    v4.hears("pod1");
    let mut next = lab.driver(backend);
    next.find_flows();
    assert_eq!(next.clear_flows(), 0);
    v4.hears("pod2");
    v6.hears("pod2");
}

fn flow_ends_at_the_next_try_where_the_kernel_refused(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    let mapping = map(Udp, 20000, POD1, 9040);
    driver.reconcile(std::slice::from_ref(&mapping));
    let client = UdpClient::new(&lab.client, at(NODE, 20000));
    client.hears("pod1");
    let removal = Plan {
        to_remove: vec![mapping],
        ..Plan::default()
    };
    driver.apply_only(&removal).unwrap();
    assert_ne!(driver.clear_flows_without_right(), 0);
    client.hears("pod1");
    assert_eq!(driver.clear_flows(), 0);
    assert!(client.ask(Duration::from_secs(1)).is_err());
}

fn client_that_sent_too_early_gets_through(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    // the node tracks flows once it has a nat rule
    driver.reconcile(&[map(Udp, 20001, POD1, 9040), map(Udp, 20001, POD1_V6, 9040)]);
    // a socket that never answers, like the keeper's socket for senders on the node
    let _holder = lab
        .node
        .run(|| std::net::UdpSocket::bind("[::]:20000").unwrap());
    let v4 = UdpClient::new(&lab.client, at(NODE, 20000));
    let v6 = UdpClient::new(&lab.client, at(NODE_V6, 20000));
    v4.ask(Duration::from_millis(20)).unwrap_err();
    v6.ask(Duration::from_millis(20)).unwrap_err();
    driver.create(&[map(Udp, 20000, POD1, 9040), map(Udp, 20000, POD1_V6, 9040)]);
    v4.hears("pod1");
    v6.hears("pod1");
}

fn flow_of_a_removed_mapping_ends(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    let mapping = map(Udp, 20000, POD1, 9040);
    driver.reconcile(std::slice::from_ref(&mapping));
    let client = UdpClient::new(&lab.client, at(NODE, 20000));
    client.hears("pod1");
    driver.remove(&[mapping]);
    assert!(client.ask(Duration::from_secs(1)).is_err());
}

fn flow_of_a_mapping_that_was_removed_before_a_crash_ends(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    let [removed, stays] = [20000, 20001].map(|port| map(Udp, port, POD1, 9040));
    driver.reconcile(&[removed.clone(), stays]);
    let client = UdpClient::new(&lab.client, at(NODE, 20000));
    let other = UdpClient::new(&lab.client, at(NODE, 20001));
    client.hears("pod1");
    other.hears("pod1");
    let removal = Plan {
        to_remove: vec![removed],
        ..Plan::default()
    };
    // it ends right after the change
    driver.apply_only(&removal).unwrap();
    let mut next = lab.driver(backend);
    next.find_flows();
    assert_eq!(next.clear_flows(), 0);
    client.hears("pod1");
    next.find_unmapped(Udp, 20000);
    assert_eq!(next.clear_flows(), 0);
    assert!(client.ask(Duration::from_secs(1)).is_err());
    other.hears("pod1");
}

fn more_flows_of_a_removed_mapping_than_are_deleted_at_once_end(backend: Backend) {
    const FLOWS: u16 = 10_000;
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    let mapping = map(Udp, 20000, POD1, 9040);
    driver.reconcile(std::slice::from_ref(&mapping));
    lab.client.run(|| {
        for port in 30_000..30_000 + FLOWS {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.send_to(b"name", at(NODE, 20000)).unwrap();
        }
    });
    let filter = "-p udp --orig-port-dst 20000";
    let before = entries(&lab, filter).lines().count();
    assert!(before > 9_000, "{before} flows: nothing is proven");
    driver.remove(&[mapping]);
    assert_eq!(entries(&lab, filter), "");
}

fn flows_of_others_stay(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 20000);
    let mut driver = lab.driver(backend);
    let other = [map(Udp, 20001, POD1, 9040), map(Tcp, 20001, POD1, 9040)];
    driver.reconcile(&other);
    let mapped = UdpClient::new(&lab.client, at(NODE, 20001));
    mapped.hears("pod1");
    let mut conversation = Conversation::open(&lab.client, at(NODE, 20001)).unwrap();
    // the node forwards a flow with the same port number to another host
    let forwarded = UdpClient::new(&lab.client, at(POD2, 20000));
    forwarded.hears("pod2");
    let flows = || {
        lab.node
            .sh("conntrack -L -p udp 2>&1 | grep -c dport=2000[01]")
    };
    assert_eq!(flows(), "2\n");
    let mapping = map(Udp, 20000, POD1, 9040);
    driver.create(std::slice::from_ref(&mapping));
    driver.remove(&[mapping]);
    assert_eq!(flows(), "2\n");
    conversation.goes_on();
}

fn forwarded_flows_of_others_stay_where_any_address_can_be_bound(backend: Backend) {
    let lab = Lab::new();
    lab.node.set("net/ipv4/ip_nonlocal_bind", "1");
    lab.node.set("net/ipv6/ip_nonlocal_bind", "1");
    let _pod2 = serve(&lab.pod2, "pod2", 20000);
    let mut driver = lab.driver(backend);
    // the node tracks flows once it has a nat rule
    driver.reconcile(&[map(Udp, 20001, POD1, 9040), map(Udp, 20001, POD1_V6, 9040)]);
    let v4 = UdpClient::new(&lab.client, at(POD2, 20000));
    let v6 = UdpClient::new(&lab.client, at(POD2_V6, 20000));
    v4.hears("pod2");
    v6.hears("pod2");
    let before = entries(&lab, "-p udp --orig-port-dst 20000 -o id");
    assert_eq!(before.lines().count(), 2, "{before}");
    driver.create(&[map(Udp, 20000, POD1, 9040), map(Udp, 20000, POD1_V6, 9040)]);
    let ids = |list: &str| -> Vec<String> {
        let ids = list.lines().filter_map(|line| line.split("id=").nth(1));
        ids.map(str::to_owned).collect()
    };
    let after = entries(&lab, "-p udp --orig-port-dst 20000 -o id");
    assert_eq!(ids(&after), ids(&before));
}

fn client_in_a_handshake_does_not_reach_the_next_pod_at_the_address(backend: Backend) {
    let lab = Lab::new();
    let _living = serve(&lab.pod1, "pod1", 9041);
    let mut driver = lab.driver(backend);
    let mappings = [
        map(Tcp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
        map(Tcp, 20001, POD1, 9041),
    ];
    driver.reconcile(&mappings);
    let mut established = Conversation::open(&lab.client, at(NODE, 20001)).unwrap();
    // the pod ends: nothing answers at its address any more
    lab.pod1.sh("nft add table inet ended
         nft add chain inet ended input '{ type filter hook input priority 0; }'
         nft add rule inet ended input tcp dport 9040 drop");
    thread::scope(|scope| {
        let client = &lab.client;
        let open = |to| scope.spawn(move || ask_tcp(client, to));
        let clients = [at(NODE, 20000), at(NODE_V6, 20000)].map(open);
        let begun = Instant::now();
        while entries(&lab, "-p tcp --orig-port-dst 20000 --state SYN_SENT")
            .lines()
            .count()
            < 2
        {
            assert!(
                begun.elapsed() < patience(Duration::from_secs(10)),
                "no SYN arrives"
            );
        }
        driver.remove(&mappings);
        let _next = serve(&lab.pod1, "another pod", 9040);
        lab.pod1.sh("nft delete table inet ended");
        for client in clients {
            let outcome = client.join().unwrap();
            let error = outcome.expect_err("the client is connected to another pod");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    });
    established.goes_on();
}

/// Returns the node's conntrack entries of both families.
fn entries(lab: &Lab, filter: &str) -> String {
    let list = |family| format!("conntrack -L -f {family} {filter} 2>/dev/null");
    lab.node.sh(&[list("ipv4"), list("ipv6")].join("; "))
}
