use std::net::Ipv4Addr;
use std::thread;

use super::*;

/// Answers connections with a text, for as long as the test runs.
fn server(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(text.as_bytes());
        }
    });
    address
}

#[test]
fn only_the_right_answer_counts() {
    let address = server("pod-1");
    assert!(ask(address, "pod-1").is_ok());
    let other = ask(address, "pod-2").unwrap_err();
    assert!(
        matches!(&other, Unreachable::Other(text) if text == "pod-1"),
        "{other}"
    );
}

#[test]
fn a_port_on_which_no_process_listens_is_refused() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert!(matches!(ask(address, "pod"), Err(Unreachable::Refused)));
}
