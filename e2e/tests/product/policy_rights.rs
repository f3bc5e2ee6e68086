//! What may the service accounts do? What docs/rbac.md says, and nothing more.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install, paths};

use crate::support::{get, shared};

/// A right: resource, name, verbs.
type Right = (String, String, Vec<String>);

/// An account without rights of its own: every account has the rights that it has.
const NO_RIGHTS: &str = "system:serviceaccount:portmapping-system:default";
/// Namespaces that are checked, besides the product's own.
const NAMESPACES: [&str; 3] = [install::NAMESPACE, "default", "kube-system"];

/// The rows of docs/rbac.md for an account in a namespace.
fn documented(table: &str, account: &str, namespace: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for line in table.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, who, place, resource, name, verbs, _] = cells[..] else {
            continue;
        };
        if who == account && (place == "everywhere" || place == namespace) {
            let verbs = verbs.split(", ").map(str::to_owned).collect();
            rights.insert((resource.to_owned(), name.to_owned(), verbs));
        }
    }
    rights
}

/// The output of `kubectl auth can-i --list`, rights on URLs included.
fn listed(cluster: &Cluster, user: &str, namespace: &str) -> Result<BTreeSet<Right>> {
    let user = format!("--as={user}");
    let text = cluster.kubectl_run(["auth", "can-i", "--list", &user, "-n", namespace])?;
    let mut rights = BTreeSet::new();
    for line in text.lines().skip(1) {
        let (resource, lists) = line.split_once('[').context("a line without lists")?;
        let lists: Vec<_> = lists
            .split('[')
            .map(|list| list.trim().trim_end_matches(']'))
            .collect();
        let [urls, names, verbs] = lists[..] else {
            anyhow::bail!("cannot read {line:?}");
        };
        let what = format!("{}{urls}", resource.trim());
        let mut verbs: Vec<_> = verbs.split(' ').map(str::to_owned).collect();
        verbs.sort();
        rights.insert((what, names.to_owned(), verbs));
    }
    Ok(rights)
}

#[test]
fn service_accounts_may_do_what_the_table_says_and_nothing_more() -> Result<()> {
    shared(|cluster| {
        let file = paths::root().join("docs/rbac.md");
        let table =
            fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        for namespace in NAMESPACES {
            let everybody = listed(cluster, NO_RIGHTS, namespace)?;
            for (what, _, verbs) in &everybody {
                let own = what.starts_with("selfsubject") && verbs == &["create"];
                let discovery = what.starts_with('/') && verbs == &["get"];
                ensure!(own || discovery, "every account may {verbs:?} {what}");
            }
            for account in ["enforcer", "webhook"] {
                let user = format!("system:serviceaccount:{}:{account}", install::NAMESPACE);
                let all = listed(cluster, &user, namespace)?;
                ensure!(
                    all.is_superset(&everybody),
                    "{account} may less than everybody"
                );
                let beyond: BTreeSet<_> = all.difference(&everybody).cloned().collect();
                let wanted = documented(&table, account, namespace);
                ensure!(
                    !wanted.is_empty(),
                    "docs/rbac.md has no row for {account} in {namespace}"
                );
                ensure!(
                    beyond == wanted,
                    "{account} may in {namespace}\n{beyond:#?}\nand docs/rbac.md says\n{wanted:#?}"
                );
            }
        }
        Ok(())
    })
}

/// The accounts of the running pods are the ones of the table.
#[test]
fn the_products_pods_run_under_these_accounts() -> Result<()> {
    shared(|cluster| {
        let which = [
            "-n",
            install::NAMESPACE,
            "pods",
            "-l",
            "app.kubernetes.io/name=portmapping",
        ];
        let pods = get(cluster, &which)?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        ensure!(!pods.is_empty(), "no pods");
        for pod in pods {
            let component = &pod["metadata"]["labels"]["app.kubernetes.io/component"];
            ensure!(
                &pod["spec"]["serviceAccountName"] == component,
                "{component}: {}",
                pod["spec"]["serviceAccountName"]
            );
        }
        Ok(())
    })
}
