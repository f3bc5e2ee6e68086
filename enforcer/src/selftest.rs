//! `enforcer test`: does this installation work? It looks for known faults, then maps a pod on each node
//! and reaches it from another node and from a pod. Every fault is printed in words.
//!
//! ```text
//! fault      what can be wrong, and where it is read from
//! objects    the pods that are made for the test
//! reach      both ends of a test connection
//! ```

use std::future::Future;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::join_all;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use portmapping_runtime::client::ApiServer;
use portmapping_runtime::deadline::chain;
use portmapping_runtime::within;
use portmapping_shared::annotation;
use portmapping_shared::contract::{ANNOTATION, CONDITION, REQUEST_MARK, WEBHOOK_CONFIGURATION};
use tokio::time::{Instant, sleep};

use self::fault::Fault;
use self::objects::{CLIENT, MAPPED, ROLE, TEST_PODS, Template};
use crate::args::TestArgs;
use crate::conditions::{is_true, is_up, message};
use crate::listing::{list, slim_node, slim_pod};
use crate::runtime::runtime;

mod fault;
mod objects;
mod reach;

pub use reach::{answer, reach};

/// The policies, and the account that each must name.
const POLICIES: [(&str, &str); 4] = [
    ("portmapping-users", "enforcer"),
    ("portmapping-namespaces", "enforcer"),
    ("portmapping-enforcer", "enforcer"),
    ("portmapping-webhook", "webhook"),
];
/// Longest wait for one call.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Longest silence within a call.
const CALL_SILENCE: Duration = Duration::from_secs(20);
/// How long the pods may take to be mapped, and to reach each other.
const PODS_LIMIT: Duration = Duration::from_secs(90);
/// Between two reads of their state.
const POLL: Duration = Duration::from_millis(500);

/// A mapped pod of the test.
struct Mapped {
    pod: String,
    node: String,
    address: SocketAddr,
}

/// Runs `enforcer test`.
pub fn test(args: &TestArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let client = ApiServer::in_cluster()?.client(CALL_SILENCE)?;
        let test = Test { client };
        let faults = test.run(args).await?;
        let mut out = std::io::stdout();
        for fault in &faults {
            writeln!(out, "FAULT: {fault}").context("cannot write to standard output")?;
        }
        match faults.len() {
            0 => Ok(()),
            count => bail!("{count} faults"),
        }
    })
}

struct Test {
    client: Client,
}

/// Says what was found to be right.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "ok: {text}");
}

impl Test {
    async fn run(&self, args: &TestArgs) -> anyhow::Result<Vec<Fault>> {
        let nodes = self.nodes(&args.nodes).await?;
        let faults = self.standing(&nodes).await?;
        if !faults.is_empty() {
            return Ok(faults);
        }
        say("registration, policies and workloads are as they should be");
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let own = call("GET the pod of this test", pods.get(&args.pod_name)).await?;
        let template = Template::of(&own).context("the pod of this test has no image")?;
        self.remove(&pods).await?;
        let faults = self.reach_all(&pods, &template, &nodes).await;
        self.remove(&pods).await?;
        faults
    }

    /// Returns the Ready nodes that run an enforcer.
    async fn nodes(&self, selector: &str) -> anyhow::Result<Vec<Node>> {
        let all: Api<Node> = Api::all(self.client.clone());
        let which = ListParams::default().labels(selector);
        let nodes = call("GET nodes", list(&all, which, slim_node)).await?;
        let (up, down): (Vec<_>, Vec<_>) = nodes.into_iter().partition(is_up);
        for node in down {
            say(&format!(
                "node {} is not Ready and is left out",
                node.name_any()
            ));
        }
        if up.is_empty() {
            bail!("no node is Ready and has the labels {selector}");
        }
        Ok(up)
    }

    /// Looks for faults without making a pod.
    async fn standing(&self, nodes: &[Node]) -> anyhow::Result<Vec<Fault>> {
        let mut faults = Vec::new();
        let client = || self.client.clone();
        let namespace = self.client.default_namespace();
        let registrations: Api<MutatingWebhookConfiguration> = Api::all(client());
        let registration = registrations.get_opt(WEBHOOK_CONFIGURATION);
        let registration = call("GET the registration", registration).await?;
        faults.extend(fault::of_registration(
            WEBHOOK_CONFIGURATION,
            registration.as_ref(),
        ));
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(client());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client());
        for (name, account) in POLICIES {
            let policy = call("GET an admission policy", policies.get_opt(name)).await?;
            let binding = call("GET a policy's binding", bindings.get_opt(name)).await?;
            let account = fault::account(namespace, account);
            let found = fault::of_policy(name, policy.as_ref(), binding.is_some(), account);
            faults.extend(found);
        }
        let sets: Api<DaemonSet> = Api::default_namespaced(client());
        let set = call("GET daemonset enforcer", sets.get_opt("enforcer")).await?;
        let deployments: Api<Deployment> = Api::default_namespaced(client());
        let webhook = call("GET deployment webhook", deployments.get_opt("webhook")).await?;
        let events: Api<Event> = Api::default_namespaced(client());
        let failed = ListParams::default().fields("reason=FailedCreate");
        let events = call("GET events", list(&events, failed, |event| event)).await?;
        let missing = fault::of_missing_pods(set.as_ref(), webhook.as_ref(), &events);
        if missing.is_empty() {
            let pods: Api<Pod> = Api::default_namespaced(client());
            let enforcers = ListParams::default().labels("app.kubernetes.io/component=enforcer");
            let enforcers = call("GET pods", list(&pods, enforcers, slim_pod)).await?;
            faults.extend(fault::of_nodes(nodes, &enforcers));
        }
        faults.extend(missing);
        Ok(faults)
    }

    async fn reach_all(
        &self,
        pods: &Api<Pod>,
        template: &Template,
        nodes: &[Node],
    ) -> anyhow::Result<Vec<Fault>> {
        let mut faults = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let mapped = object(template.mapped(index, &node.name_any()))?;
            match within(
                CALL_LIMIT,
                "POST pod",
                pods.create(&PostParams::default(), &mapped),
            )
            .await
            {
                Ok(pod) if !pod.annotations().contains_key(REQUEST_MARK) => {
                    return Ok(vec![Fault::WebhookSkipped]);
                }
                Ok(_) => {}
                // the next one would be refused in the same way
                Err(error) => return Ok(vec![fault::of_refusal(&chain(&error))]),
            }
        }
        let mut ready = Vec::new();
        let mapped = self.wait(pods, MAPPED, nodes.len(), |pod| mapping(pod).is_some());
        for pod in mapped.await? {
            match mapping(&pod) {
                Some(mapped) => ready.push(mapped),
                None => faults.push(Fault::NotMapped {
                    node: node_of(&pod),
                    why: message(&pod),
                }),
            }
        }
        say(&format!("{} pods are mapped", ready.len()));
        faults.extend(reach_from_here(&ready).await);
        faults.extend(self.reach_from_nodes(pods, template, &ready).await?);
        Ok(faults)
    }

    /// Reaches each pod from the network of the next node.
    async fn reach_from_nodes(
        &self,
        pods: &Api<Pod>,
        template: &Template,
        mapped: &[Mapped],
    ) -> anyhow::Result<Vec<Fault>> {
        if mapped.len() < 2 {
            say("there are not two nodes with a mapped pod: nothing was tried from another node");
            return Ok(Vec::new());
        }
        let next = mapped.iter().cycle().skip(1);
        let pairs = || mapped.iter().zip(next.clone());
        for (index, (to, from)) in pairs().enumerate() {
            let client = object(template.client(index, &from.node, to.address, &to.pod))?;
            call("POST pod", pods.create(&PostParams::default(), &client)).await?;
        }
        let clients = self.wait(pods, CLIENT, mapped.len(), has_ended).await?;
        let mut faults = Vec::new();
        for (index, (to, from)) in pairs().enumerate() {
            let name = objects::client_name(index);
            let client = clients.iter().find(|pod| pod.name_any() == name);
            if let Some(why) = client.map_or_else(|| Some("its pod is gone".to_owned()), failure) {
                faults.push(to.unreachable(format!("node {}", from.node), why));
            }
        }
        if faults.is_empty() {
            say("every mapped port answers from another node");
        }
        Ok(faults)
    }

    /// Polls the pods of a role until all are done, or the time is over.
    async fn wait(
        &self,
        pods: &Api<Pod>,
        role: &str,
        count: usize,
        done: impl Fn(&Pod) -> bool,
    ) -> anyhow::Result<Vec<Pod>> {
        let ours = ListParams::default().labels(&format!("{TEST_PODS},{ROLE}={role}"));
        let deadline = Instant::now() + PODS_LIMIT;
        loop {
            let found = call("GET pods", list(pods, ours.clone(), slim_pod)).await?;
            let finished = found.iter().filter(|pod| done(pod)).count();
            if finished >= count || Instant::now() >= deadline {
                return Ok(found);
            }
            sleep(POLL).await;
        }
    }

    /// Removes the pods of this test, and waits until their names are free.
    async fn remove(&self, pods: &Api<Pod>) -> anyhow::Result<()> {
        let ours = ListParams::default().labels(TEST_PODS);
        let now = DeleteParams::default().grace_period(0);
        call("DELETE pods", pods.delete_collection(&now, &ours)).await?;
        let deadline = Instant::now() + PODS_LIMIT;
        let one = ours.limit(1);
        while !call("GET pods", pods.list(&one)).await?.items.is_empty() {
            if Instant::now() >= deadline {
                bail!(
                    "the pods of an earlier test ({TEST_PODS}) are not deleted within {PODS_LIMIT:?}"
                );
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// Runs one call with a time limit; the error says which.
async fn call<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> anyhow::Result<T> {
    Ok(within(CALL_LIMIT, what, call).await?)
}

fn object(pod: serde_json::Value) -> anyhow::Result<Pod> {
    serde_json::from_value(pod).context("cannot make the object of a pod")
}

fn node_of(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    node.unwrap_or_default()
}

/// Returns where a mapped pod answers; None while it is not mapped.
fn mapping(pod: &Pod) -> Option<Mapped> {
    if !(is_true(pod, "Ready") && is_true(pod, CONDITION)) {
        return None;
    }
    let entries = annotation::decode(pod.annotations().get(ANNOTATION)?)?;
    let host: IpAddr = pod.status.as_ref()?.host_ip.as_ref()?.parse().ok()?;
    Some(Mapped {
        pod: pod.name_any(),
        node: node_of(pod),
        address: SocketAddr::new(host, entries.first()?.host_port),
    })
}

/// Reaches each mapped pod from the pod of this test.
async fn reach_from_here(mapped: &[Mapped]) -> Vec<Fault> {
    let asked = mapped.iter().map(|to| {
        let (address, name) = (to.address, to.pod.clone());
        tokio::task::spawn_blocking(move || reach::ask(address, &name))
    });
    let answers = join_all(asked).await;
    let mut faults = Vec::new();
    for (to, answer) in mapped.iter().zip(answers) {
        let why = match answer {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        faults.push(to.unreachable("a pod".to_owned(), why));
    }
    if faults.is_empty() && !mapped.is_empty() {
        say("every mapped port answers from a pod");
    }
    faults
}

impl Mapped {
    fn unreachable(&self, from: String, why: String) -> Fault {
        Fault::Unreachable {
            from,
            to: self.address.to_string(),
            node: self.node.clone(),
            why,
        }
    }
}

fn phase(pod: &Pod) -> &str {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Returns why a client failed, in its own words.
fn failure(client: &Pod) -> Option<String> {
    if phase(client) == "Succeeded" {
        return None;
    }
    let status = client.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let said = containers.into_iter().flatten().find_map(|container| {
        container
            .state
            .as_ref()?
            .terminated
            .as_ref()?
            .message
            .clone()
    });
    Some(said.unwrap_or_else(|| message(client)))
}
