//! What one event costs on a node with 5,000 mapped pods of two ports each, and a new pod when
//! 99.9 % of the range is taken: `cargo bench -p portmapping-enforcer-core`. Each line is a median
//! and a 99th percentile.

#![allow(clippy::expect_used, reason = "a measurement that cannot go on ends")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use portmapping_enforcer_core::{
    Action, Config, NodeState, PodFacts, PublishOutcome, Record, Sandbox,
};
use portmapping_shared::pod::{Container, DeclaredPort};
use portmapping_shared::{PodRef, PodSpec, PortSet};

const PODS: u32 = 5_000;
const ROUNDS: u32 = 500;

fn facts(n: u32) -> PodFacts {
    let port = |number, protocol: &str| DeclaredPort {
        container_port: number,
        protocol: protocol.to_owned(),
        ..DeclaredPort::default()
    };
    let container = Container {
        ports: vec![port(9040, "TCP"), port(53, "UDP")],
        ..Container::default()
    };
    PodFacts {
        pod: PodRef {
            namespace: "ns".to_owned(),
            name: format!("pod-{n}"),
            uid: format!("6f0c1a52-0000-4000-8000-{n:012}")
                .parse()
                .expect("a uid"),
        },
        runtime_uid: None,
        spec: PodSpec {
            containers: vec![container],
            ..PodSpec::default()
        },
        version: String::new(),
        record: Record {
            annotation: Some(String::new()),
            ..Record::default()
        },
        annotation_manager: None,
        pod_ips: Vec::new(),
        host_ips: vec!["10.0.0.11".parse().expect("an address")],
        started: true,
        finished: false,
        deleting: false,
    }
}

fn sandbox(n: u32) -> Sandbox {
    Sandbox {
        uid: facts(n).pod.uid,
        id: format!("sandbox-{n}").parse().expect("an id"),
        ips: vec![std::net::Ipv4Addr::from(0x0a64_0000 + n).into()],
        written: Duration::from_secs(n.into()),
    }
}

/// Keeper, kernel and API server say yes to everything.
fn answer(state: &mut NodeState, now: Duration) {
    loop {
        let actions = state.take_actions();
        if actions.is_empty() {
            return;
        }
        for action in actions {
            match action {
                Action::Hold(keys) => {
                    state.held(now, keys.into_iter().map(|key| (key, Ok(()))).collect());
                }
                Action::Release(keys) => state.released(now, &keys),
                Action::Program(plan) => state.programmed(now, &plan, Ok(())),
                Action::Publish(publication) => {
                    let version = "published".to_owned();
                    let outcome = PublishOutcome::Written { version };
                    state.published(now, &publication.pod.uid, outcome);
                }
                Action::Event(_) | Action::ReadPod { .. } => {}
            }
        }
    }
}

fn line(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let (middle, late) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("{what:<44} {middle:>10.1?} {late:>10.1?}");
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

fn node(range: &str, pods: u32) -> NodeState {
    let config = Config {
        range: range.parse().expect("a range"),
        excluded: PortSet::default(),
        cooldown: Duration::from_secs(30),
        quarantine: Duration::from_mins(1),
        max_ports: 64,
        max_cooling: 4,
        namespace_share: 100,
        ipv6: true,
        epoch: Duration::ZERO,
    };
    let (mut state, now) = (NodeState::new(config, 1), Duration::from_secs(1));
    state.relisted(now, &BTreeSet::new());
    for n in 0..pods {
        state.pod_applied(now, facts(n));
        state.sandbox_up(now, sandbox(n));
    }
    answer(&mut state, now);
    state
}

/// A new pod, next to 4,995 pods that have a port of this range each.
fn new_pod(range: &str) {
    let mut state = node(range, PODS - 5);
    let free = state.counts().free[0].1;
    let took = (PODS..PODS + ROUNDS).map(|n| {
        let now = Duration::from_mins(n.into());
        let took = timed(|| state.pod_applied(now, facts(n)));
        answer(&mut state, now);
        state.pod_gone(now, &facts(n).pod.uid);
        answer(&mut state, now);
        state.tick(now + Duration::from_secs(30));
        answer(&mut state, now);
        took
    });
    line(&format!("new pod, {free} ports free"), took.collect());
}

fn main() {
    let (mut state, now) = (node("10000-60000", PODS), Duration::from_secs(1));
    println!(
        "{} mappings; median and p99 of {ROUNDS}",
        state.counts().mappings
    );
    let fresh = PODS..PODS + ROUNDS;
    let mut event = |what: &str, act: &dyn Fn(&mut NodeState, u32)| {
        let took = fresh.clone().map(|n| timed(|| act(&mut state, n)));
        line(what, took.collect());
    };
    event("new pod, all its answers", &|state, n| {
        state.pod_applied(now, facts(n));
        answer(state, now);
    });
    event("its sandbox, all its answers", &|state, n| {
        state.sandbox_up(now, sandbox(n));
        answer(state, now);
    });
    event("an event that changes nothing", &|state, _| {
        state.pod_applied(now, facts(1));
        answer(state, now);
    });
    event("its sandbox ends, all its answers", &|state, n| {
        state.sandbox_down(now, &sandbox(n).id);
        answer(state, now);
    });
    event("it is gone", &|state, n| {
        state.pod_gone(now, &facts(n).pod.uid);
        answer(state, now);
    });
    event("next_deadline", &|state, _| {
        std::hint::black_box(state.next_deadline());
    });
    event("counts for the metrics", &|state, _| {
        std::hint::black_box(state.counts());
    });
    let all = state.desired();
    line(
        "the whole kernel read back (backstop)",
        (0..20)
            .map(|_| {
                let all = all.clone();
                timed(|| assert!(state.observed(now, all, true)))
            })
            .collect(),
    );
    for range in ["10000-59999", "10000-14999"] {
        new_pod(range);
    }
}
