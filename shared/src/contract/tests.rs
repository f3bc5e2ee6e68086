//! The manifests are the other half of the contract: they must spell it as the programs do.

use super::*;

const REGISTRATION: &str = include_str!("../../../manifests/base/registration.yaml");
const RBAC: &str = include_str!("../../../manifests/base/rbac.yaml");
const NAMESPACE_YAML: &str = include_str!("../../../manifests/base/namespace.yaml");
const WEBHOOK: &str = include_str!("../../../manifests/base/webhook.yaml");
const USERS: &str = include_str!("../../../manifests/base/policy-users.yaml");
const ENFORCER: &str = include_str!("../../../manifests/base/policy-enforcer.yaml");
const HOOK: &str = include_str!("../../../manifests/base/policy-webhook.yaml");

#[test]
fn the_registration_is_the_one_the_webhook_serves() {
    assert!(REGISTRATION.contains(&format!("name: {WEBHOOK_CONFIGURATION}")));
    assert!(REGISTRATION.contains(&format!("'{ANNOTATION}' in object.metadata.annotations")));
    for name in [NAMESPACE, WEBHOOK_SERVICE] {
        assert!(REGISTRATION.contains(name), "{name}");
    }
    assert!(WEBHOOK.contains(&format!(
        "kind: Service\nmetadata: {{name: {WEBHOOK_SERVICE}"
    )));
    assert!(NAMESPACE_YAML.contains(NAMESPACE));
}

#[test]
fn the_webhooks_rights_name_its_own_objects() {
    assert!(RBAC.contains(&format!("resourceNames: [{TLS_SECRET}]")));
    assert!(RBAC.contains(&format!("resourceNames: [{WEBHOOK_CONFIGURATION}]")));
}

#[test]
fn the_policies_guard_what_the_programs_write() {
    for policy in [USERS, ENFORCER] {
        for name in [ANNOTATION, REQUEST_MARK, PER_PORT_PREFIX] {
            assert!(
                policy.contains(&format!("'{name}'")),
                "{name} is not guarded"
            );
        }
        assert!(policy.contains(&format!("system:serviceaccount:{NAMESPACE}:enforcer")));
    }
    assert!(HOOK.contains(&format!("system:serviceaccount:{NAMESPACE}:webhook")));
    assert!(USERS.contains(&format!("size(variables.value) <= {MAX_REQUEST_BYTES}")));
    assert!(ENFORCER.contains(&format!("c.type == '{CONDITION}'")));
}
