//! How long a replaced registration had no caBundle, by the API server's audit log.

use std::time::Duration;

use anyhow::Result;
use e2e::Cluster;

use crate::support::audit;

const WEBHOOK: &str = "system:serviceaccount:portmapping-system:webhook";

/// For each replacement of the registration so far that a patch of the webhook followed: the time from the
/// arrival of the replacement to the answer to the patch.
pub(super) fn repairs(cluster: &Cluster) -> Result<Vec<Duration>> {
    let (mut found, mut replaced) = (Vec::new(), None);
    for call in audit::calls(cluster)? {
        let object = &call["objectRef"];
        if object["resource"] != "mutatingwebhookconfigurations"
            || object["name"] != "portmapping"
            || call["responseStatus"]["code"] != 200
        {
            continue;
        }
        if call["verb"] == "update" {
            replaced = Some(audit::time(&call, "requestReceivedTimestamp")?);
        } else if call["verb"] == "patch"
            && call["user"]["username"] == WEBHOOK
            && let Some(begun) = replaced.take()
        {
            let took = audit::time(&call, "stageTimestamp")? - begun;
            found.push(Duration::from_micros(u64::try_from(took)?));
        }
    }
    Ok(found)
}
