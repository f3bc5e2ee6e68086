use clap::CommandFactory;
use portmapping_shared::HostPort;

use super::*;

fn config(more: &[&str]) -> Result<RunConfig, InvalidFlags> {
    let words = ["enforcer", "run", "--node-name=n1"].iter().chain(more);
    let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!()
    };
    RunConfig::try_from(*args)
}

#[test]
fn flags_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn defaults_are_those_of_the_manifest() {
    let config = config(&[]).unwrap();
    assert_eq!(config.core.range.to_string(), "20000-29999");
    assert_eq!(config.core.cooldown, Duration::from_secs(30));
    let node_port = HostPort::new(30_080).unwrap();
    assert!(
        config.core.excluded.contains(node_port),
        "node ports are never allocated"
    );
    let manifest = include_str!("../../../manifests/base/enforcer.yaml");
    let command = Cli::command();
    for subcommand in ["run", "keep"] {
        let flags = command.find_subcommand(subcommand).unwrap();
        let mut variables = 0;
        for flag in flags.get_arguments() {
            let (Some(name), [default]) = (flag.get_env(), flag.get_default_values()) else {
                continue;
            };
            let (name, default) = (name.to_str().unwrap(), default.to_str().unwrap());
            variables += 1;
            let set = format!("{{name: {name}, value: {default}}}");
            let listed = |line: &str| {
                let mut words = line.split_whitespace().skip(1);
                words.next() == Some(&format!("{name}={default}"))
            };
            assert!(
                manifest.contains(&set) || manifest.lines().any(listed),
                "the manifest does not show that {name} is {default} by default"
            );
        }
        assert!(variables > 0, "{subcommand} has no variable");
    }
}

#[test]
fn enforcer_and_keeper_read_the_range_from_the_same_variable() {
    let command = Cli::command();
    for subcommand in ["run", "keep"] {
        let flags = command.find_subcommand(subcommand).unwrap();
        let range = flags.get_arguments().find(|flag| flag.get_id() == "range");
        assert_eq!(
            range.unwrap().get_env(),
            Some("PORTMAPPING_RANGE".as_ref()),
            "{subcommand}"
        );
    }
}

#[test]
fn cni_results_can_be_in_another_directory_or_unused() {
    let dirs = |more: &[&str]| -> Vec<String> {
        let dirs = config(more).unwrap().cni_results;
        dirs.iter().map(|dir| dir.display().to_string()).collect()
    };
    assert_eq!(
        dirs(&[]),
        ["/var/lib/cni/results", "/var/lib/cni/cache/results"]
    );
    assert_eq!(dirs(&["--cni-results=/a,/b"]), ["/a", "/b"]);
    assert!(dirs(&["--cni-results="]).is_empty());
}

#[test]
fn exclusions_add_up() {
    let config = config(&["--exclude=20000,20010-20019"]).unwrap();
    let excluded = |port| config.core.excluded.contains(HostPort::new(port).unwrap());
    assert!(excluded(20_000) && excluded(20_015) && excluded(32_767) && !excluded(20_001));
}

#[test]
fn a_range_that_is_excluded_completely_is_refused() {
    let error = config(&["--range=30000-30010"]).unwrap_err().to_string();
    assert!(error.contains("30000-30010"), "{error}");
    assert!(config(&["--check-every=10ms"]).is_err());
    let error = Cli::try_parse_from(["enforcer", "run", "--max-ports=129"]).err();
    assert!(error.unwrap().to_string().contains("1..=128"));
}

#[test]
fn an_invalid_range_is_refused_with_an_example() {
    let words = ["enforcer", "run", "--node-name=n1", "--range=many"];
    let error = Cli::try_parse_from(words).unwrap_err().to_string();
    assert!(error.contains("write 20000-29999"), "{error}");
}
