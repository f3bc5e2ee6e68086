//! Does each value of the chart do what a patch of the base does?

use anyhow::Result;

use crate::agree::{NAMESPACE, agree};
use crate::render::{chart, overlay};

const IMAGES: &str = "
images:
- {name: localhost/portmapping-webhook, newName: mirror.example/portmapping-webhook, digest: 'sha256:1234567890abcdef1234567890abcdef1234567890abcdef1234567890abcdef'}
- {name: localhost/portmapping-enforcer, newName: mirror.example/portmapping-enforcer, digest: 'sha256:fedcba0987654321fedcba0987654321fedcba0987654321fedcba0987654321'}
patches:
- target: {kind: Deployment|DaemonSet}
  patch: |
    - {op: add, path: /spec/template/spec/imagePullSecrets, value: [{name: mirror}]}
    - {op: replace, path: /spec/template/spec/containers/0/imagePullPolicy, value: Always}
- target: {kind: DaemonSet}
  patch: |
    - {op: replace, path: /spec/template/spec/initContainers/0/imagePullPolicy, value: Always}
";

const SETTINGS: &str = "
patches:
- patch: |
    apiVersion: apps/v1
    kind: DaemonSet
    metadata: {name: enforcer, namespace: portmapping-system}
    spec:
      template:
        spec:
          initContainers:
          - name: keeper
            env: [{name: PORTMAPPING_RANGE, value: 21000-21999}, {name: PORTMAPPING_LOG, value: debug}, {name: PORTMAPPING_LOG_FORMAT, value: text}]
            resources: {limits: {memory: 71Mi}}
          containers:
          - name: enforcer
            env:
            - {name: PORTMAPPING_RANGE, value: 21000-21999}
            - {name: PORTMAPPING_EXCLUDE, value: '21500,21600-21700'}
            - {name: PORTMAPPING_NODE_PORT_RANGE, value: 31000-31999}
            - {name: PORTMAPPING_HOST_ADDRESSES, value: all}
            - {name: PORTMAPPING_BACKEND, value: nftables}
            - {name: PORTMAPPING_MASQUERADE, value: always}
            - {name: PORTMAPPING_MAX_PORTS, value: '8'}
            - {name: PORTMAPPING_LOG, value: debug}
            - {name: PORTMAPPING_LOG_FORMAT, value: text}
            - {name: PORTMAPPING_COOLDOWN, value: 60s}
- patch: |
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: webhook, namespace: portmapping-system}
    spec:
      template:
        spec:
          containers:
          - name: webhook
            env:
            - {name: PORTMAPPING_MAX_PORTS, value: '8'}
            - {name: PORTMAPPING_LOG, value: debug}
            - {name: PORTMAPPING_LOG_FORMAT, value: text}
            - {name: EXTRA, value: more}
";

const PLACES: &str = "
replicas: [{name: webhook, count: 3}]
patches:
- patch: |
    apiVersion: scheduling.k8s.io/v1
    kind: PriorityClass
    metadata: {name: portmapping-enforcer}
    $patch: delete
- patch: |
    apiVersion: apps/v1
    kind: DaemonSet
    metadata: {name: enforcer, namespace: portmapping-system}
    spec:
      updateStrategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 25%}}
      template:
        metadata: {labels: {team: edge}}
        spec:
          priorityClassName: ours
          nodeSelector: {pool: edge}
          tolerations: [{key: edge, operator: Exists}]
          affinity:
            $patch: replace
            nodeAffinity:
              requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: Exists}]}]}
          securityContext: {seLinuxOptions: {type: spc_t}}
          initContainers: [{name: keeper, env: [{name: PORTMAPPING_SUCCESSOR_WAIT, value: '0'}]}]
          containers: [{name: enforcer, resources: {requests: {cpu: 200m}, limits: {memory: 512Mi}}}]
- patch: |
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: webhook, namespace: portmapping-system}
    spec:
      template:
        metadata: {labels: {team: core}}
        spec:
          priorityClassName: ours
          nodeSelector: {pool: core}
          tolerations: [{key: core, operator: Exists}]
          affinity:
            $patch: replace
            nodeAffinity:
              requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: Exists}]}]}
          containers:
          - name: webhook
            resources: {requests: {cpu: 30m}, limits: {memory: 256Mi}}
            env: [{name: PORTMAPPING_LISTEN, value: '[::]:8443'}, {name: PORTMAPPING_ADMIN_LISTEN, value: '[::]:8082'}]
            ports:
            - $patch: replace
            - {name: https, containerPort: 8443}
            - {name: health, containerPort: 8082}
";

const NO_CLASS: &str = "
patches:
- patch: |
    apiVersion: scheduling.k8s.io/v1
    kind: PriorityClass
    metadata: {name: portmapping-enforcer}
    $patch: delete
- patch: |
    apiVersion: apps/v1
    kind: DaemonSet
    metadata: {name: enforcer, namespace: portmapping-system}
    spec: {template: {spec: {priorityClassName: null}}}
";

/// The terms of a node affinity, as `--set` takes them.
fn affinity(of: &str) -> String {
    let terms = "nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let term = format!("{of}.affinity.{terms}[0].matchExpressions[0]");
    format!("{term}.key=pool,{term}.operator=Exists")
}

#[test]
fn each_value_does_what_a_patch_of_the_base_does() -> Result<()> {
    let [webhook, enforcer] = ["webhook", "enforcer"].map(affinity);
    let placed = format!(
        "webhook.replicas=3,webhook.port=8443,webhook.healthPort=8082,webhook.priorityClassName=ours,webhook.nodeSelector.pool=core,\
         webhook.tolerations[0].key=core,webhook.tolerations[0].operator=Exists,{webhook},webhook.podLabels.team=core,\
         webhook.resources.requests.cpu=30m,webhook.resources.limits.memory=256Mi,\
         enforcer.maxSurge=0,enforcer.maxUnavailable=25%,enforcer.priorityClassName=ours,enforcer.nodeSelector.pool=edge,\
         enforcer.tolerations[0].key=edge,enforcer.tolerations[0].operator=Exists,{enforcer},enforcer.podLabels.team=edge,\
         enforcer.seLinuxOptions.type=spc_t,enforcer.resources.requests.cpu=200m,enforcer.resources.limits.memory=512Mi"
    );
    let set = "range=21000-21999,exclude={21500,21600-21700},nodePortRange=31000-31999,hostAddresses=all,backend=nftables,\
         masquerade=always,maxPorts=8,logLevel=debug,logFormat=text,\
         enforcer.extraEnv[0].name=PORTMAPPING_COOLDOWN,enforcer.extraEnv[0].value=60s,\
         webhook.extraEnv[0].name=EXTRA,webhook.extraEnv[0].value=more";
    let images = "images.registry=mirror.example/,images.webhook.digest=sha256:1234567890abcdef1234567890abcdef1234567890abcdef1234567890abcdef,images.enforcer.digest=sha256:fedcba0987654321fedcba0987654321fedcba0987654321fedcba0987654321,\
         images.pullSecrets={mirror},images.pullPolicy=Always";
    for (what, text, values) in [
        ("images", IMAGES, images),
        ("settings", SETTINGS, set),
        ("places", PLACES, placed.as_str()),
        ("no class", NO_CLASS, "enforcer.priorityClassName="),
    ] {
        let patched = overlay(what, &format!("resources: [MANIFESTS/base]\n{text}"))?;
        agree(what, patched, chart(NAMESPACE, values)?)?;
    }
    Ok(())
}
