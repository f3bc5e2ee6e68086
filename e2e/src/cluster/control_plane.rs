//! The control plane: etcd, the API server, its controllers, and the machines plugged into its fabric.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::components::{self, Collects, create_log, start, wait_for_port};
use super::config::Spec;
use super::mounts::RUN;
use super::namespaces::Parent;
use super::network::{self, Machine};
use super::role_name::RoleName;
use super::{namespaces, pki, relay};
use crate::api::Api;
use crate::process;
use crate::wait::{self, Probe};

const ETCD: &str = "127.0.0.1:2379";
/// Generous: a machine at load 200 needs a minute.
const PATIENCE: Duration = Duration::from_mins(3);

/// Starts everything and never returns. `relayed` was opened in the root network namespace.
pub(crate) fn run(spec: &Spec, relayed: TcpListener) -> Result<()> {
    nix::unistd::sethostname("control-plane").context("set the host name")?;
    start_etcd(spec)?;
    network::create_fabric()?;
    wait_for_port(ETCD, PATIENCE)?; // an API server that comes first backs off for a second
    start_api_server(spec)?;
    relay::start(relayed);
    for index in 1..=spec.config.nodes {
        add_machine(spec, Machine::Node(index))?;
    }
    add_machine(spec, Machine::Client)?;
    // Controllers that start before the API server is ready are refused and back off for seconds.
    wait_for_port(network::API_SERVER_SOCKET, PATIENCE)?;
    let api = Api::new(&spec.state.join(pki::INSIDE))?;
    wait::until(
        "the API server to be ready",
        PATIENCE,
        Duration::from_millis(30),
        || {
            Ok(match api.ready() {
                Ok(()) => Probe::Done(()),
                Err(error) => Probe::Missing(format!("{error:#}")),
            })
        },
    )?;
    start_controllers(spec)?;
    loop {
        thread::park();
    }
}

/// Starts a machine in namespaces of its own and plugs it into the fabric.
pub(crate) fn add_machine(spec: &Spec, machine: Machine) -> Result<()> {
    let name = machine.name();
    let log = create_log(spec, &name)?;
    let mut command = Command::new("/proc/self/exe");
    command.args(RoleName::first_of(machine).arguments(&spec.state));
    command
        .stdin(Stdio::piped())
        .stderr(components::clone(&log)?)
        .stdout(log);
    let mut child = namespaces::spawn(command, Parent::Ends)?;
    network::plug_in(machine, child.id()).with_context(|| format!("plug in {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(b"go")
            .with_context(|| format!("write to {name} that it is plugged in"))?;
    }
    let spec = spec.clone();
    thread::spawn(move || {
        if let Ok(status) = child.wait() {
            components::record_end(&spec, &name, &process::ending(status));
        }
    });
    Ok(())
}

fn start_etcd(spec: &Spec) -> Result<()> {
    let data = format!("{RUN}/etcd");
    fs::create_dir_all(&data).with_context(|| format!("create {data}"))?;
    let arguments = [
        format!("--data-dir={data}"),
        format!("--listen-client-urls=http://{ETCD}"),
        format!("--advertise-client-urls=http://{ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--heartbeat-interval=10".to_owned(),
        "--election-timeout=50".to_owned(),
    ];
    let program = spec.kubernetes.join("etcd");
    start(spec, "etcd", &program, &arguments, Collects::Seldom)
}

fn start_api_server(spec: &Spec) -> Result<()> {
    let families = spec.config.families;
    let arguments = [
        format!("--etcd-servers=http://{ETCD}"),
        "--secure-port=6443".to_owned(),
        "--bind-address=::".to_owned(),
        format!(
            "--advertise-address={}",
            families.of(network::CONTROL_PLANE)[0]
        ),
        format!("--tls-cert-file={}", spec.pki("apiserver.crt")),
        format!("--tls-private-key-file={}", spec.pki("apiserver.key")),
        format!("--client-ca-file={}", spec.pki("ca.crt")),
        format!("--token-auth-file={}", spec.pki("tokens.csv")),
        format!("--service-account-key-file={}", spec.pki("sa.pub")),
        format!("--service-account-signing-key-file={}", spec.pki("sa.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!(
            "--kubelet-client-certificate={}",
            spec.pki("kubelet-client.crt")
        ),
        format!("--kubelet-client-key={}", spec.pki("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!(
            "--service-cluster-ip-range={}",
            families.list(network::SERVICE_RANGES)
        ),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // The control plane runs no kube-proxy: webhooks are reached at their pods.
        "--enable-aggregator-routing=true".to_owned(),
        format!("--audit-policy-file={}", spec.audit_policy.display()),
        format!("--audit-log-path={}", spec.log("audit").display()),
        "--audit-log-mode=blocking".to_owned(),
    ];
    start(
        spec,
        "kube-apiserver",
        &spec.kubernetes.join("kube-apiserver"),
        &arguments,
        Collects::Seldom,
    )
}

fn start_controllers(spec: &Spec) -> Result<()> {
    // At the default 20 calls a second, service accounts alone take five seconds.
    let quick = [
        "--kube-api-qps=1000",
        "--kube-api-burst=1000",
        "--leader-elect=false",
    ];
    let kubeconfig = |name: &str| {
        format!(
            "--kubeconfig={}",
            spec.state.join(format!("{name}.kubeconfig")).display()
        )
    };
    let mut controllers: Vec<_> = quick.map(String::from).into();
    controllers.extend([
        kubeconfig("controller-manager"),
        format!("--service-account-private-key-file={}", spec.pki("sa.key")),
        format!("--root-ca-file={}", spec.pki("ca.crt")),
        "--use-service-account-credentials=true".to_owned(),
        "--controllers=*,-node-ipam-controller".to_owned(),
    ]);
    let name = "kube-controller-manager";
    let program = spec.kubernetes.join(name);
    start(spec, name, &program, &controllers, Collects::Often)?;
    let mut scheduler: Vec<_> = quick.map(String::from).into();
    scheduler.push(kubeconfig("scheduler"));
    start(
        spec,
        "kube-scheduler",
        &spec.kubernetes.join("kube-scheduler"),
        &scheduler,
        Collects::Often,
    )
}
