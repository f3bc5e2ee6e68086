//! A pod whose interface has two addresses of one family: core's plans, applied by each driver.

use std::time::Duration;

use portmapping_dataplane::Backend;
use portmapping_dataplane::migration::BackendMigration;
use portmapping_dataplane::snapshot::Snapshot;
use portmapping_dataplane::{AddressSelection, Dataplane, Settings, Tools};
use portmapping_enforcer_core::{Action, Config, NodeState, PodFacts, Record, Recovered, Sandbox};
use portmapping_shared::pod::{Container, DeclaredPort};
use portmapping_shared::{PodRef, PodSpec, PortSet};

use crate::world::{NODE_IP, in_netns};

const NOW: Duration = Duration::from_secs(1000);
const ADDRESSES: [&str; 3] = ["10.244.0.2", "10.244.0.3", "fd00:244::2"];

#[test]
fn pod_with_two_addresses_of_a_family_has_one_rule_per_port_and_family() {
    for backend in Backend::ALL {
        in_netns(|| one_rule_per_port_and_family(backend));
    }
}

fn one_rule_per_port_and_family(backend: Backend) {
    let range = "20000-20099".parse().unwrap();
    let settings = Settings {
        selection: AddressSelection::All,
        host_addresses: [NODE_IP.parse().unwrap()].into(),
        ..Settings::new(range)
    };
    let tools = Tools::default();
    let snapshot = Snapshot::read(&tools, &settings);
    let (mut driver, _) = BackendMigration::open(backend, &settings, tools, snapshot).unwrap();
    let config = Config {
        range,
        excluded: PortSet::default(),
        cooldown: Duration::from_secs(30),
        quarantine: Duration::from_mins(1),
        max_ports: 64,
        max_cooling: 4,
        namespace_share: 25,
        ipv6: true,
        epoch: Duration::ZERO,
    };
    let found = Recovered {
        intact: true,
        ..Recovered::default()
    };
    let mut node = NodeState::recover(config, 1, NOW, found);
    node.pod_applied(NOW, facts(&[]));
    node.relisted(NOW, &[facts(&[]).pod.uid].into());
    let sandbox = Sandbox {
        uid: facts(&[]).pod.uid,
        id: "sandbox-1".parse().unwrap(),
        ips: ADDRESSES.map(|ip| ip.parse().unwrap()).to_vec(),
        written: NOW,
    };
    node.sandbox_up(NOW, sandbox);
    settle(&mut node, &mut driver);
    assert_eq!(
        leads_to(&mut driver),
        [ADDRESSES[0], ADDRESSES[2]],
        "{backend}"
    );
    // the API names the other address
    node.pod_applied(NOW, facts(&[ADDRESSES[1]]));
    settle(&mut node, &mut driver);
    assert_eq!(
        leads_to(&mut driver),
        [ADDRESSES[1], ADDRESSES[2]],
        "{backend}"
    );
}

/// Carries out what core asks, and fails if the kernel refuses it.
fn settle(node: &mut NodeState, driver: &mut dyn Dataplane) {
    loop {
        let actions = node.take_actions();
        if actions.is_empty() {
            return;
        }
        for action in actions {
            match action {
                Action::Hold(keys) => {
                    node.held(NOW, keys.into_iter().map(|key| (key, Ok(()))).collect());
                }
                Action::Program(plan) => {
                    driver.apply(&plan).unwrap();
                    node.programmed(NOW, &plan, Ok(()));
                }
                _ => {}
            }
        }
    }
}

/// Returns where the rules lead, one address per rule.
fn leads_to(driver: &mut dyn Dataplane) -> Vec<String> {
    let observed = driver.observe().unwrap();
    assert!(observed.intact);
    let pods = observed.mappings.iter();
    let mut pods: Vec<String> = pods.map(|mapping| mapping.pod_ip.to_string()).collect();
    pods.sort();
    pods
}

fn facts(pod_ips: &[&str]) -> PodFacts {
    let port = DeclaredPort {
        container_port: 9040,
        ..DeclaredPort::default()
    };
    PodFacts {
        pod: PodRef {
            namespace: "ns".into(),
            name: "a".into(),
            uid: "uid-a".parse().unwrap(),
        },
        runtime_uid: None,
        spec: PodSpec {
            containers: vec![Container {
                ports: vec![port],
                ..Container::default()
            }],
            ..PodSpec::default()
        },
        version: pod_ips.len().to_string(),
        record: Record {
            annotation: Some(String::new()),
            ..Record::default()
        },
        annotation_manager: None,
        pod_ips: pod_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        host_ips: vec![NODE_IP.parse().unwrap()],
        started: true,
        finished: false,
        deleting: false,
    }
}
