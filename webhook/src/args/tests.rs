use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::{Args, Config};

fn config(flags: &[&str]) -> anyhow::Result<Config> {
    let args = Args::try_parse_from(["webhook"].iter().chain(flags))?;
    Ok(args.into_config()?.1)
}

#[test]
fn the_defaults_work_in_a_pod() {
    Args::command().debug_assert();
    let config = config(&[]).unwrap();
    assert_eq!(config.listen.port(), 8443);
    assert_eq!(config.admin_listen.port(), 8081);
    assert_eq!(config.tls_secret, "portmapping-webhook-tls");
    assert_eq!(config.registration, "portmapping");
    assert!(
        config
            .certificates
            .names
            .iter()
            .any(|name| name == "webhook.portmapping-system.svc")
    );
    assert_eq!(config.reviews.deadline, Duration::from_secs(4));
    assert_eq!(config.reviews.body_bytes, 3 << 20);
    assert!(
        config.server.timeouts.idle > Duration::from_secs(90),
        "a Go client closes an idle connection first"
    );
}

#[test]
fn the_certificate_is_for_the_configured_service() {
    let config = config(&["--namespace", "ns", "--service", "hook"]).unwrap();
    assert_eq!(config.certificates.names.iter().next(), Some("hook.ns.svc"));
}

#[test]
fn invalid_flags_are_refused() {
    for flags in [
        ["--leaf-lifetime", "1s"],
        ["--ca-lifetime", "1d"],
        ["--cert-period", "0s"],
        ["--max-connections", "0"],
        ["--deadline", "4"],
        ["--listen", "8443"],
        ["--max-ports", "129"],
        ["--log", "=="],
        ["--log-format", "xml"],
    ] {
        assert!(config(&flags).is_err(), "{flags:?}");
    }
}
