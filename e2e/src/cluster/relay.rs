//! The one opening to the root network namespace: a socket stays in the namespace it was made in, so
//! this accepts there and dials here.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener as Listener, TcpStream};
use tokio::runtime::Builder;

const API_SERVER: &str = "127.0.0.1:6443";

/// Relays every connection to the API server, from a thread of its own.
pub(crate) fn start(listener: TcpListener) -> Result<()> {
    listener
        .set_nonblocking(true)
        .context("make the relayed listener non-blocking")?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    thread::spawn(move || runtime.block_on(serve(listener)));
    Ok(())
}

async fn serve(listener: TcpListener) {
    let listener = match Listener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("relay: {error}"),
    };
    loop {
        match listener.accept().await {
            Ok((connection, _)) => drop(tokio::spawn(relay(connection))),
            Err(error) => {
                eprintln!("relay: accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// An end of either side is the end of both, and nobody's fault.
async fn relay(mut outside: TcpStream) {
    let Ok(mut inside) = TcpStream::connect(API_SERVER).await else {
        return;
    };
    let _ = outside
        .set_nodelay(true)
        .and_then(|()| inside.set_nodelay(true));
    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
}
