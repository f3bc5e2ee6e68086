//! A connection that must lose no byte, new connections that must all succeed, and a process that must
//! not get a held port.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::outside::{read, tcp};

/// Reads the numbered lines of a stream until `stop` is set; an error if one is missing.
pub(crate) fn follow(address: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut pending, mut chunk) = (Vec::new(), [0; 4096]);
    let (mut lines, mut received) = (0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let length = read(&mut stream, &mut chunk).context("the stream broke")?;
        ensure!(length > 0, "the stream ended after {lines} lines");
        pending.extend_from_slice(&chunk[..length]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let number: u64 = String::from_utf8_lossy(&line)
                .trim()
                .parse()
                .context("a torn line")?;
            // each line is the number of bytes before it, so a lost byte shows at once
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

/// The result of many new connections.
#[derive(Debug, Default)]
pub(crate) struct Knocks {
    pub made: u64,
    /// The longest that one took until it was answered.
    pub slowest: Duration,
    /// The longest time from one that was made to the next.
    pub gap: Duration,
    /// Refused, reset, answered by another pod, or the first packet was lost.
    pub failed: Vec<String>,
}

/// Less than the second after which the kernel sends a lost first packet again.
const FIRST_PACKET: Duration = Duration::from_millis(900);

/// Makes new connections one after the other until `stop` is set; each must be answered by `name`.
pub(crate) fn knock(addresses: &[SocketAddr], name: &str, stop: &AtomicBool) -> Knocks {
    let mut knocks = Knocks::default();
    let mut last = Instant::now();
    for address in addresses.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        match knock_once(*address) {
            Ok((took, answer)) if answer.starts_with(name) => {
                knocks.made += 1;
                knocks.slowest = knocks.slowest.max(took);
                knocks.gap = knocks.gap.max(last.elapsed());
                last = Instant::now();
            }
            other => knocks
                .failed
                .push(format!("{address} after {:?}: {other:?}", begun.elapsed())),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    knocks
}

fn knock_once(address: SocketAddr) -> std::io::Result<(Duration, String)> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, FIRST_PACKET)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = [0; 256];
    let length = read(&mut stream, &mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    Ok((begun.elapsed(), answer))
}

/// Calls these host ports in turn until `stop` is set; each must be answered by the pod that is named with it.
/// Returns how many calls there were, and each that failed or that another pod answered.
pub(crate) fn call(
    ports: &[(SocketAddr, String)],
    pause: Duration,
    stop: &AtomicBool,
) -> (usize, Vec<String>) {
    let (mut calls, mut wrong) = (0, Vec::new());
    for (address, name) in ports.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        calls += 1;
        match tcp(*address) {
            Ok(answer) if answer == *name => {}
            Ok(answer) => wrong.push(format!("{address} of {name} answered {answer:?}")),
            Err(error) => wrong.push(format!("{address} of {name}: {error:#}")),
        }
        std::thread::sleep(pause);
    }
    (calls, wrong)
}

/// Tries to bind each port, again and again; returns the ports that it got, and the number of tries.
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
