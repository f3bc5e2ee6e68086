//! What do the events of a pod say? Each change of its ports, a typo, another writer of the annotation.

use anyhow::{Context, Result, ensure};

use crate::support::outside::Way;
use crate::support::pods::{annotation, condition, entries, is_true, mapped_pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, eventually, shared};

/// Asks for another port, and waits for the event that names it.
fn told(space: &Space<'_>, port: u16) -> Result<()> {
    let request = format!(r#"{ANNOTATION}=[{{"containerPort":{port}}}]"#);
    space.kubectl(&["annotate", "--overwrite", "pod", "web", &request])?;
    let text = format!(" -> {port}/TCP");
    eventually(&format!("an event with{text}"), || {
        let events = space.events("web")?;
        let said =
            |(reason, note): &(String, String)| reason == "PortsMapped" && note.contains(&text);
        ensure!(events.iter().any(said), "{events:?}");
        Ok(())
    })
}

/// A recorder that counts events of one reason up changes the first of them, which then is no longer there.
#[test]
fn each_change_has_its_own_event_also_after_a_user_has_deleted_the_earlier_ones() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "events-deleted", |space| {
            space.create(&mapped_pod("web"))?;
            space.ready("web")?;
            told(space, 7001)?;
            told(space, 7002)?;
            space.kubectl(&["delete", "events", "--all"])?;
            told(space, 7003)
        })
    })
}

#[test]
fn a_typo_in_a_later_request_keeps_the_mapping_and_is_told() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-typo", |space| {
            space.create(&mapped_pod("web"))?;
            let before = space.ready("web")?;
            let entry = entries(&before)?.remove(0);
            let typo = r#"[{"containerPort":"htpp"}]"#;
            let request = format!("{ANNOTATION}={typo}");
            space.kubectl(&["annotate", "--overwrite", "pod", "web", &request])?;
            eventually("the typo to be named", || {
                let web = space.pod("web")?;
                ensure!(annotation(&web) == Some(typo), "{:?}", annotation(&web));
                let condition = condition(&web, ANNOTATION).context("no condition")?;
                let message = condition["message"].as_str().unwrap_or_default();
                ensure!(
                    condition["status"] == "True" && message.contains("htpp"),
                    "{condition}"
                );
                let events = space.events("web")?;
                let told = |(reason, note): &(String, String)| {
                    reason == "InvalidRequest" && note.contains("htpp")
                };
                ensure!(events.iter().any(told), "{events:?}");
                Ok(())
            })?;
            space.answers(&before, &entry, Way::Http)
        })
    })
}

#[test]
fn a_controller_that_writes_the_request_back_is_named_and_the_port_stays() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-contest", |space| {
            space.create(&mapped_pod("web"))?;
            let before = space.ready("web")?;
            let entry = entries(&before)?.remove(0);
            let request = format!("{ANNOTATION}=");
            let back = [
                "annotate",
                "--overwrite",
                "--field-manager=operator",
                "pod",
                "web",
                &request,
            ];
            let mut results = 0;
            eventually("the controller to be named", || {
                let web = space.pod("web")?;
                if entries(&web).is_ok() {
                    results += 1;
                    space.kubectl(&back)?;
                }
                let events = space.events("web")?;
                let named = |(reason, note): &(String, String)| {
                    reason == "AnnotationContested" && note.contains("operator")
                };
                ensure!(
                    events.iter().any(named),
                    "after {results} results: {events:?}"
                );
                Ok(())
            })?;
            ensure!(results < 10, "{results} results were published");
            let web = space.pod("web")?;
            ensure!(is_true(&web, ANNOTATION), "{}", web["status"]["conditions"]);
            space.answers(&before, &entry, Way::Http)
        })
    })
}
