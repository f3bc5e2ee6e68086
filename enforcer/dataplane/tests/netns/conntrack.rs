//! UDP flows follow their mapping; flows of other programs stay unchanged.

use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Backend, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, POD2_V6, at, map};
use crate::serve::{Conversation, UdpClient, serve};

crate::for_each_backend!(
    client_of_a_moved_port_reaches_the_new_pod,
    client_that_sent_too_early_gets_through,
    flow_of_a_removed_mapping_ends,
    flows_of_others_stay,
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
    v4.ask(std::time::Duration::from_millis(20)).unwrap_err();
    v6.ask(std::time::Duration::from_millis(20)).unwrap_err();
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
    assert!(client.ask(std::time::Duration::from_secs(1)).is_err());
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
