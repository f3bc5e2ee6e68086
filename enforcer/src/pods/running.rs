//! One pod, read from the API server itself: does it still run at its addresses?

use std::net::IpAddr;
use std::time::Duration;

use kube::Client;
use kube::api::Api;
use portmapping_runtime::{CallError, within};
use portmapping_shared::PodRef;

use super::{ContainerStatus, SlimPod, addresses};

/// Longest wait for the API server's answer to one read.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// The read of a pod failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read pod {pod}, whose CNI result was removed")]
pub(crate) struct ReadError {
    pod: String,
    #[source]
    source: CallError<kube::Error>,
}

/// Returns the addresses at which the pod runs; none if it does not run, is being deleted or is gone.
pub(crate) async fn running_at(client: Client, pod: &PodRef) -> Result<Vec<IpAddr>, ReadError> {
    let api: Api<SlimPod> = Api::namespaced(client, &pod.namespace);
    // without a resourceVersion the answer is not from the API server's cache
    let found = within(READ_LIMIT, "GET pod", api.get_opt(&pod.name)).await;
    let found = found.map_err(|source| ReadError {
        pod: pod.to_string(),
        source,
    })?;
    let same = |found: &SlimPod| found.metadata.uid.as_deref() == Some(pod.uid.as_str());
    Ok(found
        .filter(same)
        .as_ref()
        .map(running_addresses)
        .unwrap_or_default())
}

fn running_addresses(pod: &SlimPod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let runs = status.phase.as_deref() == Some("Running")
        && status.containers().any(ContainerStatus::is_running);
    if !runs || pod.deleting {
        return Vec::new();
    }
    addresses(status.pod_ips.as_deref(), status.pod_ip.as_deref())
}

#[cfg(test)]
mod tests;
