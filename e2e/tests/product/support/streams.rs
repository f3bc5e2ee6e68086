//! A connection that must not lose a byte, and a thief that must not get a port.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Reads the numbered lines of a stream until told to stop; an error if one is missing.
pub(crate) fn follow(address: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut pending, mut chunk) = (Vec::new(), [0; 4096]);
    let (mut lines, mut received) = (0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let length = stream.read(&mut chunk).context("the stream broke")?;
        ensure!(length > 0, "the stream ended after {lines} lines");
        pending.extend_from_slice(&chunk[..length]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let number: u64 = String::from_utf8_lossy(&line)
                .trim()
                .parse()
                .context("a torn line")?;
            // each line says how many bytes came before it: a lost byte shows at once
            ensure!(
                number == received,
                "{number} bytes were sent and {received} received"
            );
            received += line.len() as u64;
            lines += 1;
        }
    }
    Ok(lines)
}

/// Tries to bind each port, again and again; the ports it got.
pub(crate) fn steal(ports: &[u16], stop: &AtomicBool) -> (BTreeSet<u16>, u64) {
    let (mut stolen, mut tries) = (BTreeSet::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        for port in ports {
            tries += 1;
            match TcpListener::bind(("0.0.0.0", *port)) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                _ => {
                    stolen.insert(*port);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (stolen, tries)
}
