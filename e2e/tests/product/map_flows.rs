//! Do clients that go on sending notice that their pod is gone?

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::outside::{Way, at};
use crate::support::pods::{annotated, entries, pod};
use crate::support::space::Space;
use crate::support::{LIMIT, shared};

/// The kernel keeps the way of a client's datagrams as long as it goes on sending, unless the entry is deleted.
#[test]
fn a_client_that_goes_on_sending_to_a_deleted_pods_port_is_refused() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "flows-sending", |space| {
            let ports = json!([{ "containerPort": 9041, "protocol": "UDP" }]);
            space.create(&annotated(pod("web", &["--udp", "9041"], &ports), ""))?;
            let web = space.ready("web")?;
            let entry = entries(&web)?.remove(0);
            space.answers(&web, &entry, Way::Udp)?;
            let to = space.endpoint(&web, &entry)?;
            let gone = Arc::new(AtomicBool::new(false));
            let (answered, answer) = mpsc::channel();
            let deleted = Arc::clone(&gone);
            let client = at(cluster, "client", move || {
                send_until_refused(to, &answered, &deleted)
            })?;
            let known = answer
                .recv_timeout(LIMIT)
                .context("the client got no answer");
            // while its network exists, the pod itself refuses what comes to a closed port
            let removed = space.kubectl(&["delete", "pod", "web"]);
            gone.store(true, Ordering::Relaxed);
            let refused = client.join().ok().context("the client panicked")???;
            known?;
            removed?;
            ensure!(refused, "{to} did not refuse within {REFUSED_WITHIN:?}");
            Ok(())
        })
    })
}

/// Less than a cool-down: no other pod has the port.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);

/// Sends from one socket without a long pause. Reports the first answer; returns whether the port refuses once
/// the pod is gone: twice, because the first refusal can be older.
fn send_until_refused(
    to: SocketAddr,
    answered: &mpsc::Sender<()>,
    gone: &AtomicBool,
) -> Result<bool> {
    let client = UdpSocket::bind("0.0.0.0:0")?;
    client.connect(to)?;
    client.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (mut since, mut refusals) = (None, 0);
    loop {
        let is_gone = gone.load(Ordering::Relaxed);
        let asked = client
            .send(b"who are you?\n")
            .and_then(|_| client.recv(&mut [0; 256]));
        match asked {
            Ok(_) => drop(answered.send(())),
            Err(error) if is_gone && error.kind() == ErrorKind::ConnectionRefused => refusals += 1,
            Err(_) => {}
        }
        let begun = since.or(is_gone.then(Instant::now));
        since = begun;
        if refusals > 1 || begun.is_some_and(|begun| begun.elapsed() > REFUSED_WITHIN) {
            return Ok(refusals > 1);
        }
    }
}
