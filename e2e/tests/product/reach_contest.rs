//! Does another program that wants the first rules of table nat, as Felix of Calico does, cost connections?
//!
//! It takes minutes, so it runs by command: `cargo test -p e2e --test product reach_contest -- --ignored`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::Cluster;
use serde_json::json;

use crate::reach::backends;
use crate::support::outside::at;
use crate::support::parts::roll;
use crate::support::pods::{annotated, entries, on_node, pod};
use crate::support::space::Space;
use crate::support::streams::knock;
use crate::support::{alone, eventually};

const NODE: &str = "node1";
const CONTEST: Duration = Duration::from_mins(1);
/// Felix looks at its rules this long after it wrote them, and then after twice the time.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Inserts the jumps of the other program before all other rules where they are not the first; prints how
/// often. All in one change per time, as Felix does it.
const PUT_FIRST: &str = r#"
    rules="" wrong=0
    for chain in PREROUTING OUTPUT POSTROUTING; do
        jump="-m comment --comment cali:$chain -j cali-$chain"
        saved=$(iptables-save -t nat | grep -e "^-A $chain ")
        if [ "$(echo "$saved" | head -n1 | grep -c cali-)" = 1 ]; then continue; fi
        wrong=1
        rules="$rules
:cali-$chain - [0:0]"
        if echo "$saved" | grep -q cali-; then rules="$rules
-D $chain $jump"; fi
        rules="$rules
-I $chain 1 $jump"
    done
    if [ $wrong = 1 ]; then printf '*nat%s\nCOMMIT\n' "$rules" | iptables-restore -w 30 --noflush; fi
    echo $wrong"#;
const REMOVE: &str = "
    for chain in PREROUTING OUTPUT POSTROUTING; do
        iptables -w 30 -t nat -D $chain -m comment --comment cali:$chain -j cali-$chain
        iptables -w 30 -t nat -X cali-$chain
    done";

#[test]
#[ignore = "minutes; by command"]
fn a_program_that_wants_the_first_rules_costs_no_connection() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "reach-contest", |space| {
            let ports = json!([{ "containerPort": 9040 }]);
            let web = pod("web", &["--tcp", "9040"], &ports);
            space.create(&on_node(annotated(web, ""), NODE))?;
            let web = space.ready("web")?;
            let entry = entries(&web)?.remove(0);
            let endpoint = space.endpoint(&web, &entry)?;
            let before = backends(cluster)?;
            ensure!(before.0, "the backend is not iptables");
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let knocks = at(cluster, "client", move || {
                knock(&[endpoint], "web", &stopped)
            })?;
            let rewrites = contest(cluster);
            let named = eventually("an event that names the contest", || {
                let events = space.events("web")?.into_iter();
                let count = events
                    .filter(|(reason, _)| reason == "RulesContested")
                    .count();
                ensure!(count > 0, "no event yet");
                Ok(count)
            });
            stop.store(true, Ordering::Relaxed);
            let knocks = knocks
                .join()
                .map_err(|_| anyhow!("the client panicked"))??;
            let removed = sh(cluster, REMOVE);
            // later tests find an enforcer that has not given way
            roll(cluster)?;
            let (rewrites, named) = (rewrites?, named?);
            removed?;
            println!("{rewrites} rewrites; {} connections", knocks.made);
            ensure!(rewrites <= 2, "{rewrites} rewrites in {CONTEST:?}");
            ensure!(knocks.made > 100, "{} connections", knocks.made);
            ensure!(knocks.failed.is_empty(), "{:?}", knocks.failed);
            ensure!(named == 1, "{named} events");
            ensure!(backends(cluster)? == before, "the backend changed");
            Ok(())
        })
    })
}

/// Plays the other program; returns how often it had to put its rules first again.
fn contest(cluster: &Cluster) -> Result<u32> {
    sh(cluster, PUT_FIRST)?;
    let begun = Instant::now();
    let (mut rewrites, mut pause) = (0, FIRST_LOOK);
    while begun.elapsed() < CONTEST {
        thread::sleep(pause.min(CONTEST.saturating_sub(begun.elapsed())));
        if sh(cluster, PUT_FIRST)?.trim() == "1" {
            rewrites += 1;
            pause = FIRST_LOOK;
        } else {
            pause *= 2;
        }
    }
    Ok(rewrites)
}

fn sh(cluster: &Cluster, script: &str) -> Result<String> {
    let output = cluster.exec(NODE, &["sh", "-c", script])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).context("text of iptables")
}
