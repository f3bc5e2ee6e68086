//! What does a user see where another program of the node drops connections to pods, or has rules that the
//! enforcer cannot read?

use anyhow::{Context, Result, bail, ensure};
use e2e::Cluster;
use e2e::install::NAMESPACE as SYSTEM;
use serde_json::{Value, json};

use crate::reach::backends;
use crate::support::outside::Way;
use crate::support::parts::with_flags;
use crate::support::pods::{MappedPort, annotated, condition, entries, on_node, pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, alone, enforcer, eventually, get};

const NODE: &str = "node1";

#[test]
fn a_pod_says_false_while_a_firewall_drops_all_that_is_forwarded_to_it() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "reach-forward", |space| {
            let (web, entry) = mapped(space)?;
            sh(cluster, "iptables -w 30 -I FORWARD -j DROP")?;
            let told = eventually("condition and event to name FORWARD", || {
                let pod = space.pod("web")?;
                let condition = condition(&pod, ANNOTATION).context("no condition")?;
                let message = condition["message"].as_str().unwrap_or_default();
                let is_told =
                    condition["reason"] == "DataplaneError" && message.contains("FORWARD");
                ensure!(condition["status"] == "False" && is_told, "{condition}");
                event_on_node(cluster, "ForwardDrops")?;
                ensure!(space.answers(&pod, &entry, Way::Tcp).is_err(), "it answers");
                Ok(())
            });
            sh(cluster, "iptables -w 30 -D FORWARD -j DROP")?;
            told?;
            space.ready("web")?;
            space.answers(&web, &entry, Way::Tcp)
        })
    })
}

#[test]
fn a_node_with_cilium_whose_routing_cannot_be_read_names_the_overlay() -> Result<()> {
    alone(|cluster| {
        // Cilium's link; this installation does not mount its state
        sh(
            cluster,
            "ip link add cilium_host type veth peer name cilium_net",
        )?;
        let told = eventually("an event that names the overlay", || {
            let note = event_on_node(cluster, "RoutingUnknown")?;
            ensure!(note.contains("overlays/cilium"), "{note}");
            Ok(())
        });
        sh(cluster, "ip link delete cilium_host")?;
        told
    })
}

/// The note of the latest event of this kind on the Node.
fn event_on_node(cluster: &Cluster, reason: &str) -> Result<String> {
    let events = get(cluster, &["-n", "default", "events"])?;
    let events = events["items"].as_array().context("no list")?;
    let mut named = events
        .iter()
        .rev()
        .filter(|event| event["reason"] == reason && event["involvedObject"]["name"] == NODE);
    let event = named.next().context("no such event on the Node")?;
    Ok(event["message"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_node_whose_iptables_rules_cannot_be_read_any_more_goes_on_with_nftables() -> Result<()> {
    alone(|cluster| {
        goes_on_with_nftables(cluster, "nat", "POSTROUTING")?;
        goes_on_with_nftables(cluster, "filter", "FORWARD")
    })
}

fn goes_on_with_nftables(cluster: &Cluster, table: &str, chain: &str) -> Result<()> {
    Space::with(cluster, &format!("reach-{table}"), |space| {
        let (web, entry) = mapped(space)?;
        ensure!(backends(cluster)? == (true, false), "not iptables");
        let (before, reason, _) = backend(cluster)?;
        ensure!(before == "iptables-nft" && !reason.is_empty(), "{before}");
        // iptables prints no table with such a rule
        let chain = format!("ip {table} {chain}");
        sh(
            cluster,
            &format!("nft add rule {chain} ct status expected return"),
        )?;
        let moved = eventually("the node to have nftables rules alone", || {
            ensure!(backends(cluster)? == (false, true), "not yet");
            let (now, reason, series) = backend(cluster)?;
            ensure!(now == "nftables", "{now}: {reason}");
            ensure!(series.contains("reason=\"iptables unusable\""), "{series}");
            space.answers(&web, &entry, Way::Tcp)?;
            Ok(reason)
        });
        let handle = format!("nft -a list chain {chain} | sed -n 's/.*ct status.*# handle //p'");
        sh(
            cluster,
            &format!("nft delete rule {chain} handle $({handle})"),
        )?;
        // the backend that works stays, so later tests would find nftables
        with_flags(cluster, &[], &["--backend=iptables"], || Ok(()))?;
        let reason = moved?;
        ensure!(reason.contains(table), "{reason}");
        let same = entries(&space.ready("web")?)? == [entry];
        ensure!(same, "the mapping changed");
        Ok(())
    })
}

/// A pod of this node and its mapped port, which answers.
fn mapped(space: &Space<'_>) -> Result<(Value, MappedPort)> {
    let ports = json!([{ "containerPort": 9040 }]);
    let web = pod("web", &["--tcp", "9040"], &ports);
    space.create(&on_node(annotated(web, ""), NODE))?;
    let web = space.ready("web")?;
    let entry = entries(&web)?.remove(0);
    space.answers(&web, &entry, Way::Tcp)?;
    Ok((web, entry))
}

/// The backend of the node, and why it was chosen, as an operator asks for it, and its series of the metrics.
fn backend(cluster: &Cluster) -> Result<(String, String, String)> {
    let pod = enforcer(cluster, NODE)?;
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    let call = ["-n", SYSTEM, "exec", name, "-c", "enforcer", "--"];
    let text = cluster.kubectl_run([&call[..], &["/enforcer", "status"]].concat())?;
    let status: Value = serde_json::from_str(&text).with_context(|| format!("status: {text}"))?;
    let field = |name: &str| {
        status[name]
            .as_str()
            .map(str::to_owned)
            .context(text.clone())
    };
    let backend = field("backend")?;
    let series = backend_in_use(cluster, &pod)?;
    let named = series.contains(&format!("backend=\"{backend}\""));
    ensure!(named, "{series} does not name {backend}");
    Ok((backend, field("backendReason")?, series))
}

/// The only series of the metric that is 1, read as docs/operate.md says it.
fn backend_in_use(cluster: &Cluster, enforcer: &Value) -> Result<String> {
    let uid = enforcer["metadata"]["uid"].as_str().context("no uid")?;
    let script = format!(
        "curl -fsS --max-time 5 http://localhost/metrics \
         --unix-socket /var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/run/admin.sock"
    );
    let metrics = sh(cluster, &script)?;
    let mut in_use = metrics
        .lines()
        .filter(|line| line.starts_with("portmapping_backend{") && line.ends_with(" 1"));
    let (Some(series), None) = (in_use.next(), in_use.next()) else {
        bail!("not one backend is in use: {metrics}");
    };
    Ok(series.to_owned())
}

fn sh(cluster: &Cluster, script: &str) -> Result<String> {
    let output = cluster.exec(NODE, &["sh", "-c", script])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
