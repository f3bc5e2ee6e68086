//! Webhook and policies judge the same values: what the webhook admits must not be refused after it, and
//! what the policies would refuse must not get past them by way of the webhook.

#[path = "../policy/hostile.rs"]
mod hostile;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::hostile::{GOOD, HOSTILE, long, sixty_four};
use crate::support::pods::{annotated, annotation, pod};
use crate::support::shared;
use crate::support::space::Space;

const DRY: [&str; 3] = ["--dry-run=server", "-o", "json"];

/// A pod whose ports have the names that the values speak of.
fn named() -> Value {
    let ports = json!([{ "containerPort": 9040, "name": "web" }, { "containerPort": 53, "name": "dns", "protocol": "UDP" }]);
    pod("new", &["--http", "9040"], &ports)
}

/// The pod that kubectl printed among its warnings.
fn printed(said: &str) -> Result<Value> {
    let (start, end) = (said.find('{'), said.rfind('}'));
    let text = start
        .zip(end)
        .and_then(|(start, end)| said.get(start..=end));
    serde_json::from_str(text.context("no JSON")?).with_context(|| said.to_owned())
}

#[test]
fn hostile_values_are_refused_or_reset_at_creation() -> Result<()> {
    let cluster = shared();
    Space::with(&cluster, "policy-hostile", |space| {
        let mut reset = 0;
        for value in HOSTILE
            .iter()
            .map(|value| (*value).to_owned())
            .chain(long())
        {
            let (fine, said) = space.try_create(&annotated(named(), &value), &DRY)?;
            let short: String = value.chars().take(90).collect();
            if !fine {
                ensure!(said.contains("tkestack.io/portmapping"), "{short}: {said}");
                continue;
            }
            // a copied result: emptied, and its owner told
            ensure!(
                said.contains("counts as \"\""),
                "{short} was accepted: {said}"
            );
            ensure!(
                annotation(&printed(&said)?) == Some(""),
                "{short} was kept: {said}"
            );
            reset += 1;
        }
        ensure!(reset > 0, "the list has no copied result");
        Ok(())
    })
}

#[test]
fn what_the_webhook_admits_the_policies_let_pass() -> Result<()> {
    let cluster = shared();
    Space::with(&cluster, "policy-good", |space| {
        for value in GOOD
            .iter()
            .map(|value| (*value).to_owned())
            .chain([sixty_four()])
        {
            let (fine, said) = space.try_create(&annotated(named(), &value), &DRY)?;
            if !fine {
                bail!("{value:?} was refused: {said}");
            }
            ensure!(
                annotation(&printed(&said)?) == Some(&value),
                "{value:?}: {said}"
            );
        }
        Ok(())
    })
}
