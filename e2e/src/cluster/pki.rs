//! Keys, certificates, tokens and kubeconfigs of a cluster, made in process.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::config::Spec;
use super::network::{self, MAX_NODES};

/// The kubeconfig for people and tests: through the relay, as cluster admin.
pub(crate) const ADMIN: &str = "admin.kubeconfig";
/// The same rights, for programs on the fabric.
pub(crate) const INSIDE: &str = "inside.kubeconfig";

/// For the harness, so that the audit log shows its calls under another name.
pub(crate) const HARNESS: &str = "harness.kubeconfig";

/// Writes everything that the components are given by file.
pub(crate) fn create(spec: &Spec, relay_port: u16) -> Result<()> {
    certificates(spec).context("make certificates")?;
    let mut tokens = String::new();
    let relay = format!("https://127.0.0.1:{relay_port}");
    let mut identity = |file: &str, user: &str, groups: &str, servers: &[(&str, &str)]| {
        let token = random_token()?;
        let _ = writeln!(tokens, "{token},{user},{user},\"{groups}\"");
        for (name, server) in servers {
            kubeconfig(
                spec,
                if name.is_empty() { file } else { name },
                server,
                &token,
            )?;
        }
        anyhow::Ok(())
    };
    let inside = [("", network::API_SERVER)];
    identity(
        ADMIN,
        "kubernetes-admin",
        "system:masters",
        &[(ADMIN, relay.as_str()), (INSIDE, network::API_SERVER)],
    )?;
    identity(
        HARNESS,
        "harness",
        "system:masters",
        &[("", relay.as_str())],
    )?;
    identity(
        "controller-manager.kubeconfig",
        "system:kube-controller-manager",
        "",
        &inside,
    )?;
    identity("scheduler.kubeconfig", "system:kube-scheduler", "", &inside)?;
    identity("proxy.kubeconfig", "system:kube-proxy", "", &inside)?;
    for index in 1..=MAX_NODES {
        let user = format!("system:node:{}", spec.config.node_name(index));
        identity(
            &format!("node{index}.kubeconfig"),
            &user,
            "system:nodes",
            &inside,
        )?;
    }
    private(Path::new(&spec.pki("tokens.csv")), &tokens)
}

/// The key of an authority that was added.
const NEW_AUTHORITY: &str = "new-ca.key";

/// Appends the certificate of a new authority, which has signed nothing yet, to the bundle.
pub(crate) fn add_authority(spec: &Spec) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = authority(spec)?.self_signed(&key)?;
    private(Path::new(&spec.pki(NEW_AUTHORITY)), &key.serialize_pem())?;
    let path = spec.pki("ca.crt");
    let bundle = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    public(&path, &(bundle + &certificate.pem()))
}

/// Replaces key and certificate of the API server by new ones that the added authority has signed.
pub(crate) fn renew_api_server(spec: &Spec) -> Result<()> {
    let path = spec.pki(NEW_AUTHORITY);
    let key = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let issuer = Issuer::new(authority(spec)?, KeyPair::from_pem(&key)?);
    leaf(spec, "apiserver", &api_server()?, &issuer)
}

fn authority(spec: &Spec) -> Result<CertificateParams> {
    let mut params = dated(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{} CA", spec.config.name));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn certificates(spec: &Spec) -> Result<()> {
    let folder = spec.state.join("pki");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let authority_key = KeyPair::generate()?;
    let params = authority(spec)?;
    let authority = params.self_signed(&authority_key)?;
    public(&spec.pki("ca.crt"), &authority.pem())?;
    let issuer = Issuer::new(params, authority_key);

    leaf(spec, "apiserver", &api_server()?, &issuer)?;

    let mut client = dated(Vec::new())?;
    client
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver-kubelet-client");
    client
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    leaf(spec, "kubelet-client", &client, &issuer)?;

    let accounts = KeyPair::generate()?;
    private(Path::new(&spec.pki("sa.key")), &accounts.serialize_pem())?;
    public(&spec.pki("sa.pub"), &accounts.public_key_pem())
}

fn api_server() -> Result<CertificateParams> {
    let mut names: Vec<String> = ["", ".default", ".default.svc", ".default.svc.cluster.local"]
        .map(|suffix| format!("kubernetes{suffix}"))
        .into();
    names.extend(network::CONTROL_PLANE.map(String::from));
    names.extend(network::SERVICE_OF_API_SERVER.map(String::from));
    names.extend(["127.0.0.1", "localhost"].map(String::from));
    let mut server = dated(names)?;
    server
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(server)
}

fn dated(names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(365);
    Ok(params)
}

fn leaf(
    spec: &Spec,
    name: &str,
    params: &CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    public(&spec.pki(&format!("{name}.crt")), &certificate.pem())?;
    private(
        Path::new(&spec.pki(&format!("{name}.key"))),
        &key.serialize_pem(),
    )
}

fn kubeconfig(spec: &Spec, file: &str, server: &str, token: &str) -> Result<()> {
    let (authority, name) = (spec.pki("ca.crt"), &spec.config.name);
    // JSON is YAML, and needs no parser of its own.
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": name, "cluster": { "server": server, "certificate-authority": authority } }],
        "users": [{ "name": name, "user": { "token": token } }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        "current-context": name,
    });
    let text = format!("{text:#}\n");
    private(&spec.state.join(file), &text)
}

/// Every local user can connect to the relay on 127.0.0.1, so tokens must not be guessable.
fn random_token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    let mut source = fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    source.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn public(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {path}"))
}

fn private(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))
}
