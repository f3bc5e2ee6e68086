//! Tells in the API that the pods of a node have no host ports any more.

use std::time::Duration;

use kube::Client;
use portmapping_enforcer_core::uninstalled;
use portmapping_runtime::client::{ApiServer, ClientError};
use portmapping_runtime::deadline::chain;
use portmapping_runtime::list_watch::{ListError, list};
use portmapping_runtime::{CallError, within};

use crate::pods::{SlimPod, facts};
use crate::publish::{PublishError, Publisher};

/// Longest silence within a call.
const CALL_SILENCE: Duration = Duration::from_secs(15);
/// Longest wait for the list of pods.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Rounds over the pods: a pod may change between list and write, and a call may fail.
const ROUNDS: usize = 5;
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// Why pods may still claim host ports.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReleaseError {
    /// No service account.
    #[error("cannot call the API server")]
    Client(#[from] ClientError),
    /// The list of pods failed.
    #[error("cannot list the pods of node {node}")]
    List {
        /// The node.
        node: String,
        /// The cause.
        #[source]
        source: CallError<ListError>,
    },
    /// Some pods could not be written.
    #[error("cannot release {count} pods; the first of them")]
    Publish {
        /// How many.
        count: usize,
        /// The cause for one.
        #[source]
        source: PublishError,
    },
}

/// Writes `Released` for every pod of the node that has our condition or request mark.
pub(super) async fn release(node: &str) -> Result<(), ReleaseError> {
    let client = ApiServer::in_cluster()?.client(CALL_SILENCE)?;
    let mut outcome = Ok(());
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        outcome = release_once(client.clone(), node).await;
        match &outcome {
            Ok(()) => break,
            Err(error) => {
                tracing::debug!(error = chain(error), round, "not all pods are released");
            }
        }
    }
    outcome
}

async fn release_once(client: Client, node: &str) -> Result<(), ReleaseError> {
    let of_node = format!("spec.nodeName={node}");
    let pods = within(LIST_LIMIT, "GET pods", list::<SlimPod>(&client, &of_node))
        .await
        .map_err(|source| ReleaseError::List {
            node: node.to_owned(),
            source,
        })?;
    let publisher = Publisher::new(client, node);
    let due = pods.iter().filter_map(facts);
    let mut failures = Vec::new();
    for publication in due.filter_map(|facts| uninstalled(&facts)) {
        match publisher.publish(&publication).await {
            Ok(_version) => tracing::info!(pod = %publication.pod, "released"),
            // it was deleted after the list
            Err(error) if error.is_missing() => {}
            Err(error) => failures.push(error),
        }
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(source) => Err(ReleaseError::Publish { count, source }),
    }
}
