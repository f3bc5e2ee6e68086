use std::net::Ipv4Addr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server on loopback with a certificate of this CA.
async fn server(ca: &Ca) -> Uri {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, ca).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(|_| ()) });
        }
    });
    format!("https://127.0.0.1:{port}").parse().unwrap()
}

fn trusting(path: &Path) -> Trusting {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    let trust = Arc::new(Trust::read(path.to_owned()).unwrap());
    Trusting { tcp, trust }
}

#[tokio::test]
async fn new_connections_believe_the_ca_that_the_file_names_now() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.crt");
    let (first, second) = (authority(), authority());
    let (old, new) = (server(&first).await, server(&second).await);
    fs::write(&path, first.as_ref().pem()).unwrap();
    let mut connector = trusting(&path);
    connector.call(old.clone()).await.unwrap();
    connector.call(new.clone()).await.unwrap_err();

    let both = first.as_ref().pem() + &second.as_ref().pem();
    fs::write(&path, both).unwrap();
    connector.call(old.clone()).await.unwrap();
    connector.call(new.clone()).await.unwrap();

    fs::write(&path, second.as_ref().pem()).unwrap();
    connector.call(old).await.unwrap_err();
    for useless in [
        "",
        "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(&path, useless).unwrap();
        connector.call(new.clone()).await.unwrap();
    }
    fs::remove_file(&path).unwrap();
    connector.call(new).await.unwrap();
}

#[tokio::test]
async fn nothing_is_said_without_tls() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.crt");
    fs::write(&path, authority().as_ref().pem()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = format!("http://127.0.0.1:{port}").parse().unwrap();
    trusting(&path).call(plain).await.unwrap_err();
}

#[test]
fn a_file_without_a_ca_is_an_error_that_names_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.crt");
    assert!(matches!(
        Trust::read(path.clone()),
        Err(TrustError::Read { .. })
    ));
    for text in [
        "",
        "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(&path, text).unwrap();
        let error = Trust::read(path.clone()).unwrap_err();
        assert!(error.to_string().contains("ca.crt"), "{error}");
    }
}
