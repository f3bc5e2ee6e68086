use std::net::IpAddr;

use clap::{CommandFactory, Parser};

use super::*;
use crate::args::{Cli, Command};

/// What the flags of `enforcer run` make the data plane work with.
fn of_flags(more: &[&str]) -> Settings {
    let words = ["enforcer", "run", "--node-name=n1", "--masquerade=never"];
    let cli = Cli::try_parse_from(words.iter().chain(more)).unwrap();
    let Command::Run(args) = cli.command else {
        panic!("another command")
    };
    settings(&RunConfig::try_from(*args).unwrap())
}

#[test]
fn mappings_answer_at_the_host_ips_until_the_node_is_read() {
    // the downward API writes status.hostIPs with commas; ::ffff: is IPv4
    let flag = "--host-ips=192.0.2.1,2001:db8::1,::ffff:192.0.2.2";
    let expected = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
    let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap());
    let addresses = of_flags(&[flag]).host_addresses;
    assert_eq!(addresses, expected.into());
    assert!(of_flags(&[]).host_addresses.is_empty());
}

#[test]
fn host_ips_come_from_the_variable_of_the_manifests() {
    let command = Cli::command();
    let run = command.find_subcommand("run").unwrap();
    let flag = run.get_arguments().find(|flag| flag.get_id() == "host_ips");
    assert_eq!(flag.unwrap().get_env(), Some("HOST_IPS".as_ref()));
}
