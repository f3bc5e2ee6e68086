//! The one opening to the root network namespace: a socket stays in the namespace in which it was
//! made, so this accepts there and connects here.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const API_SERVER: &str = "127.0.0.1:6443";
/// After a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Relays every connection to the API server, each on two threads of its own.
pub(crate) fn start(listener: TcpListener) {
    thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((outside, _)) => drop(thread::spawn(move || relay(&outside))),
                Err(error) => {
                    eprintln!("relay: accept: {error}");
                    thread::sleep(PAUSE);
                }
            }
        }
    });
}

/// A connection that ends is no error, whichever side ends it.
fn relay(outside: &TcpStream) {
    let connect = || {
        let inside = TcpStream::connect(API_SERVER)?;
        outside.set_nodelay(true)?;
        inside.set_nodelay(true)?;
        io::Result::Ok(((outside.try_clone()?, inside.try_clone()?), inside))
    };
    let Ok(((requests, answers), inside)) = connect() else {
        return;
    };
    thread::spawn(move || pump(&requests, &inside));
    pump(&answers, outside);
}

fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    // After an error neither direction can go on; after an end the other one still can.
    let side = match io::copy(&mut from, &mut to) {
        Ok(_) => Shutdown::Write,
        Err(_) => Shutdown::Both,
    };
    let _ = to.shutdown(side);
}
