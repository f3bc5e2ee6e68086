use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const UID: &str = "7f3c0f0e-5b9e-4a57-9a3e-0d9c6f0e2b11";
const ID: &str = "2f1c3d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeeff0011";
const NODE: &str = "10.0.0.11";
const WRITTEN: Duration = Duration::from_secs(1_700_000_000);

/// What libcni 1.x writes for the bridge plugin on containerd.
fn bridge() -> Value {
    json!({
        "kind": "cniCacheV1",
        "containerId": ID,
        "config": "eyJjbmlWZXJzaW9uIjoiMS4wLjAifQ==",
        "ifName": "eth0",
        "networkName": "pods",
        "netns": "/var/run/netns/cni-1",
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", "default"],
            ["K8S_POD_NAME", "hello-0"],
            ["K8S_POD_INFRA_CONTAINER_ID", ID],
            ["K8S_POD_UID", UID],
        ],
        "capabilityArgs": {"dns": {}, "portMappings": []},
        "result": {
            "cniVersion": "1.0.0",
            "dns": {},
            "interfaces": [
                {"mac": "8a:00:00:00:00:01", "name": "cni0"},
                {"mac": "8a:00:00:00:00:02", "name": "veth1"},
                {"mac": "8a:00:00:00:00:03", "name": "eth0", "sandbox": "/var/run/netns/cni-1"},
            ],
            "ips": [{"address": "10.244.1.7/24", "gateway": "10.244.1.1", "interface": 2}],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    })
}

fn read(value: &Value) -> Result<Option<Sandbox>, Unusable> {
    read_text(&value.to_string())
}

fn read_text(text: &str) -> Result<Option<Sandbox>, Unusable> {
    let node: IpAddr = NODE.parse().unwrap();
    parse(text.as_bytes(), WRITTEN, |ip| ip == node)
}

fn addresses(result: &Value) -> Result<Vec<String>, Unusable> {
    let mut file = bridge();
    file["result"] = result.clone();
    let sandbox = read(&file)?.expect("it is about eth0");
    Ok(sandbox.ips.iter().map(ToString::to_string).collect())
}

fn with(pointer: &str, value: Value) -> Value {
    let mut file = bridge();
    *file.pointer_mut(pointer).expect("a field of the example") = value;
    file
}

#[test]
fn a_result_has_pod_sandbox_address_and_time() {
    let sandbox = read(&bridge()).unwrap().unwrap();
    assert_eq!(sandbox.uid.as_str(), UID);
    assert_eq!(sandbox.id.as_str(), ID);
    assert_eq!(sandbox.ips, ["10.244.1.7".parse::<IpAddr>().unwrap()]);
    assert_eq!(sandbox.written, WRITTEN);
}

/// What libcni writes when it is called as CRI-O calls it, with the bridge plugin.
#[test]
fn a_result_of_cri_o_is_read() {
    let sandbox = read_text(include_str!("crio.json")).unwrap().unwrap();
    assert_eq!(sandbox.uid.as_str(), UID);
    let id = "9b0f7c1d2e3f405162738495a6b7c8d9eaf0112233445566778899aabbccddee";
    assert_eq!(sandbox.id.as_str(), id);
    assert_eq!(
        sandbox.ips,
        ["10.85.0.2", "1100:200::2"].map(|ip| ip.parse::<IpAddr>().unwrap())
    );
}

#[test]
fn results_of_every_version_are_read() {
    let interfaces = json!([{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/1"}]);
    let cases = [
        (
            "0.1 and 0.2, which have no version",
            json!({"ip4": {"ip": "10.1.0.2/16"}, "dns": {}}),
            vec!["10.1.0.2"],
        ),
        (
            "0.2, both families",
            json!({"ip6": {"ip": "fd00::2/64"}, "ip4": {"ip": "10.1.0.2/16"}}),
            vec!["10.1.0.2", "fd00::2"],
        ),
        (
            "0.3.1",
            json!({"cniVersion": "0.3.1", "interfaces": interfaces, "ips": [{"version": "4", "interface": 1, "address": "10.1.0.2/16"}]}),
            vec!["10.1.0.2"],
        ),
        (
            "0.4.0 without interfaces",
            json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.2/32"}]}),
            vec!["10.1.0.2"],
        ),
        (
            "1.0.0, null for nothing",
            json!({"cniVersion": "1.0.0", "interfaces": null, "ips": [{"address": "10.1.0.2/32", "interface": null}], "routes": null}),
            vec!["10.1.0.2"],
        ),
        (
            "1.1.0, both families, IPv6 first",
            json!({"cniVersion": "1.1.0", "interfaces": interfaces, "ips": [
            {"interface": 1, "address": "fd00::2/64"}, {"interface": 1, "address": "10.1.0.2/16"}]}),
            vec!["10.1.0.2", "fd00::2"],
        ),
        (
            "one to come",
            json!({"cniVersion": "9.0.0", "ips": [{"address": "10.1.0.2/16", "new": [{}]}], "new": {"a": [1]}}),
            vec!["10.1.0.2"],
        ),
    ];
    for (name, result, expected) in cases {
        assert_eq!(
            addresses(&result),
            Ok(expected.into_iter().map(String::from).collect()),
            "{name}"
        );
    }
}

#[test]
fn only_the_addresses_of_eth0_are_the_pods() {
    // the AWS VPC plugin lists the node's end first; Multus may list further interfaces of the pod
    let result = json!({
        "interfaces": [{"name": "eni1"}, {"name": "eth0", "sandbox": "x"}, {"name": "net1", "sandbox": "x"}, {}],
        "ips": [
            {"interface": 0, "address": "10.9.0.1/32"},
            {"interface": 1, "address": "10.1.0.2/32"},
            {"interface": 2, "address": "10.7.0.3/32"},
            {"interface": 3, "address": "10.7.0.4/32"},
        ],
    });
    assert_eq!(addresses(&result), Ok(vec!["10.1.0.2".to_owned()]));
}

#[test]
fn loopback_and_further_networks_are_ignored() {
    for name in ["lo", "net1", "eth1", "", "ETH0"] {
        assert_eq!(read(&with("/ifName", json!(name))), Ok(None), "{name}");
    }
}

#[test]
fn an_interface_that_is_not_listed_makes_the_file_unusable() {
    for index in [3, -1, i64::MAX, i64::MIN] {
        let file = with("/result/ips/0/interface", json!(index));
        assert_eq!(read(&file), Err(Unusable::NoSuchInterface(index)));
    }
}

#[test]
fn addresses_that_no_pod_can_have_are_ignored() {
    let unfit = [
        "0.0.0.0/0",
        "0.1.2.3/8",
        "127.0.0.1/8",
        "127.9.9.9/8",
        "224.0.0.1/4",
        "239.1.1.1/32",
        "255.255.255.255/32",
        "169.254.1.1/16",
        "::/0",
        "::1/128",
        "ff02::1/128",
        "fe80::1/64",
        "::ffff:127.0.0.1/128",
        "::ffff:0.0.0.0/128",
        "10.0.0.11/24",
        "::ffff:10.0.0.11/128",
    ];
    for address in unfit {
        let alone = json!({"ips": [{"address": address}]});
        assert_eq!(addresses(&alone), Err(Unusable::NoAddress), "{address}");
        let with_another = json!({"ips": [{"address": address}, {"address": "10.1.0.2/16"}]});
        assert_eq!(
            addresses(&with_another),
            Ok(vec!["10.1.0.2".to_owned()]),
            "{address}"
        );
    }
}

#[test]
fn an_invalid_address_makes_the_file_unusable() {
    let broken = [
        "",
        "/",
        "/24",
        "10.1.0.2",
        "10.1.0.2/",
        "10.1.0.2/33",
        "10.1.0.2/-1",
        "10.1.0.2/256",
        "10.1.0/24",
        "10.1.0.2.3/24",
        "010.1.0.2/24",
        "10.1.0.2/24/24",
        " 10.1.0.2/24",
        "10.1.0.2/24\n",
        "fe80::1%eth0/64",
        "fd00::1/129",
        "fd00::g/64",
        "localhost/8",
        "10.1.0.2/24\u{0}",
        "１0.1.0.2/24",
    ];
    for address in broken {
        let result = json!({"ips": [{"address": "10.1.0.2/16"}, {"address": address}]});
        assert_eq!(
            addresses(&result),
            Err(Unusable::NotAnAddress(address.to_owned()))
        );
    }
}

#[test]
fn duplicate_addresses_count_once_and_ipv4_mapped_ones_as_ipv4() {
    let result = json!({"ips": [{"address": "::ffff:10.1.0.2/120"}, {"address": "10.1.0.2/16"}]});
    assert_eq!(addresses(&result), Ok(vec!["10.1.0.2".to_owned()]));
}

#[test]
fn a_result_without_pod_or_sandbox_is_unusable() {
    let long = "a".repeat(64);
    for uid in ["", "a b", "a\nb", "-A KUBE", long.as_str()] {
        let args = json!([["K8S_POD_UID", uid]]);
        assert_eq!(
            read(&with("/cniArgs", args)),
            Err(Unusable::NoPod),
            "{uid:?}"
        );
    }
    for args in [
        json!([]),
        Value::Null,
        json!([["K8S_POD_UID", "a"], ["K8S_POD_UID", "b"]]),
    ] {
        assert_eq!(read(&with("/cniArgs", args)), Err(Unusable::NoPod));
    }
    for id in ["", "a/b", "../a", "a b"] {
        let error = read(&with("/containerId", json!(id))).unwrap_err();
        assert_eq!(error, Unusable::NoSandbox(id.to_owned()));
    }
}

#[test]
fn other_formats_are_refused() {
    assert_eq!(
        read(&with("/kind", json!("cniCacheV2"))),
        Err(Unusable::OtherKind("cniCacheV2".into()))
    );
    // the bare result of libcni before 0.8
    let bare = json!({"cniVersion": "0.3.1", "ips": [{"address": "10.1.0.2/16"}]});
    assert_eq!(read(&bare), Err(Unusable::OtherKind(String::new())));
    let wrong = [
        "",
        " ",
        "{",
        "null",
        "[]",
        "0",
        "\"cniCacheV1\"",
        "{\"kind\":1}",
        "{}{}",
        "{\"kind\":\"cniCacheV1\",\"kind\":\"cniCacheV1\"}",
        "{\"kind\":\"cniCacheV1\",\"ifName\":\"eth0\",\"cniArgs\":[[\"a\"]]}",
        "{\"kind\":\"cniCacheV1\",\"ifName\":\"eth0\",\"cniArgs\":{\"K8S_POD_UID\":\"a\"}}",
        "{\"result\":{\"ips\":[{\"address\":null}]}}",
        "{\"result\":{\"ips\":[{\"address\":\"1.1.1.1/8\",\"interface\":1.5}]}}",
    ];
    for text in wrong {
        assert!(read_text(text).is_err(), "{text}");
    }
}

#[test]
fn a_truncated_file_is_unusable() {
    let whole = bridge().to_string();
    for end in 0..whole.len() {
        assert!(read_text(&whole[..end]).is_err(), "{end}");
    }
}

#[test]
fn size_depth_and_number_are_bounded() {
    let spaces = " ".repeat(MAX_SIZE);
    assert_eq!(
        read_text(&format!("{}{spaces}", bridge())),
        Err(Unusable::TooLarge)
    );
    let deep = format!("{{\"config\":{}", "[".repeat(MAX_SIZE - 20));
    assert!(matches!(read_text(&deep), Err(Unusable::Malformed(_))));
    let deep = format!("{{\"result\":{}", "{\"ips\":[".repeat(100_000));
    assert!(matches!(read_text(&deep), Err(Unusable::Malformed(_))));
    let many: Vec<Value> = (0..17)
        .map(|n| json!({"address": format!("10.1.0.{n}/24")}))
        .collect();
    assert!(matches!(
        addresses(&json!({"ips": many})),
        Err(Unusable::Malformed(_))
    ));
}

#[test]
fn bytes_that_are_not_text_are_unusable() {
    let mut bytes = bridge().to_string().into_bytes();
    let at = bytes.windows(4).position(|w| w == b"eth0").unwrap();
    bytes[at] = 0xff;
    assert!(matches!(
        parse(&bytes, WRITTEN, |_| false),
        Err(Unusable::Malformed(_))
    ));
}

/// Whatever was parsed can safely become a rule.
fn is_sound(sandbox: &Sandbox) -> bool {
    let fit = |ip: &IpAddr| fits_a_pod(*ip) && ip.to_canonical() == *ip && ip.to_string() != NODE;
    !sandbox.ips.is_empty() && sandbox.ips.len() <= MAX_ADDRESSES && sandbox.ips.iter().all(fit)
}

fn text_of(parts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![4 => prop::sample::select(parts).prop_map(String::from), 1 => ".{0,12}"]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(Some(sandbox)) = parse(&bytes, WRITTEN, |_| false) {
            prop_assert!(is_sound(&sandbox));
        }
    }

    #[test]
    fn a_damaged_result_is_unusable_or_sound(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = bridge().to_string().into_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let node: IpAddr = NODE.parse().unwrap();
        if let Ok(Some(sandbox)) = parse(&bytes, WRITTEN, |ip| ip == node) {
            prop_assert!(is_sound(&sandbox));
        }
    }

    #[test]
    fn a_strange_result_is_unusable_or_sound(
        list in prop::collection::vec(
            (
                text_of(&["10.1.0.2/16", "fd00::2/64", "127.0.0.1/8", "10.0.0.11/8", "0.0.0.0/0", "::1/128", "ff02::1/64"]),
                prop::option::of(-2_i64..5),
            ),
            0..20,
        ),
        names in prop::collection::vec(text_of(&["eth0", "lo", "net1", ""]), 0..5),
        uid in text_of(&[UID]),
        id in text_of(&[ID]),
    ) {
        let mut file = bridge();
        let ips = list.iter().map(|(address, interface)| json!({"address": address, "interface": interface}));
        file["result"]["ips"] = ips.collect();
        file["result"]["interfaces"] = names.iter().map(|name| json!({"name": name})).collect();
        file["cniArgs"] = json!([["K8S_POD_UID", uid]]);
        file["containerId"] = json!(id);
        if let Ok(Some(sandbox)) = read(&file) {
            prop_assert!(is_sound(&sandbox));
            prop_assert_eq!(sandbox.uid.as_str(), uid);
        }
    }
}
