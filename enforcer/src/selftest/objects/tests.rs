use super::*;

#[test]
fn no_proxy_of_a_mesh_is_put_into_the_pods() {
    let own = json!({ "spec": { "containers": [{ "name": "test", "image": "i" }] } });
    let template = Template::of(&serde_json::from_value(own).unwrap()).unwrap();
    let address = SocketAddr::from(([10, 0, 0, 1], 20000));
    let mapped = template.mapped(0, "n");
    assert_eq!(mapped["metadata"]["annotations"][ANNOTATION], "");
    for pod in [mapped, template.client(0, "n", address, "p")] {
        let meta = &pod["metadata"];
        assert_eq!(meta["annotations"]["linkerd.io/inject"], "disabled");
        assert_eq!(meta["labels"]["sidecar.istio.io/inject"], "false");
        assert_eq!(meta["labels"]["istio.io/dataplane-mode"], "none");
    }
}
