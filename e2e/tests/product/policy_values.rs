//! Webhook and policies check the same values. A policy must not refuse what the webhook admits, and the
//! webhook must not turn a value that a policy refuses into one that passes.

#[path = "../policy/hostile.rs"]
mod hostile;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::hostile::{GOOD, HOSTILE, long, sixty_four};
use crate::support::pods::{annotated, annotation, pod};
use crate::support::shared;
use crate::support::space::Space;

const DRY: [&str; 3] = ["--dry-run=server", "-o", "json"];

/// A pod whose ports have the names that are in the values.
fn named() -> Value {
    let ports = json!([{ "containerPort": 9040, "name": "web" }, { "containerPort": 53, "name": "dns", "protocol": "UDP" }]);
    pod("new", &["--http", "9040"], &ports)
}

/// The pod that kubectl printed among its warnings.
fn printed(reply: &str) -> Result<Value> {
    let (start, end) = (reply.find('{'), reply.rfind('}'));
    let text = start
        .zip(end)
        .and_then(|(start, end)| reply.get(start..=end));
    serde_json::from_str(text.context("no JSON")?).with_context(|| reply.to_owned())
}

#[test]
fn hostile_values_are_refused_or_reset_at_creation() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "policy-hostile", |space| {
            let mut reset = 0;
            for value in HOSTILE
                .iter()
                .map(|value| (*value).to_owned())
                .chain(long())
            {
                let (fine, reply) = space.try_create(&annotated(named(), &value), &DRY)?;
                let short: String = value.chars().take(90).collect();
                if !fine {
                    ensure!(
                        reply.contains("tkestack.io/portmapping"),
                        "{short}: {reply}"
                    );
                    continue;
                }
                // a copied result: reset to "", with a warning
                ensure!(
                    reply.contains("counts as \"\""),
                    "{short} was accepted: {reply}"
                );
                ensure!(
                    annotation(&printed(&reply)?) == Some(""),
                    "{short} was kept: {reply}"
                );
                reset += 1;
            }
            ensure!(reset > 0, "the list has no copied result");
            Ok(())
        })
    })
}

#[test]
fn the_policies_allow_what_the_webhook_admits() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "policy-good", |space| {
            for value in GOOD
                .iter()
                .map(|value| (*value).to_owned())
                .chain([sixty_four()])
            {
                let (fine, reply) = space.try_create(&annotated(named(), &value), &DRY)?;
                if !fine {
                    bail!("{value:?} was refused: {reply}");
                }
                ensure!(
                    annotation(&printed(&reply)?) == Some(&value),
                    "{value:?}: {reply}"
                );
            }
            Ok(())
        })
    })
}
