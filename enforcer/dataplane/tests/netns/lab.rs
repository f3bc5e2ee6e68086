//! The topology that all tests use, and the driver on its node.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub(crate) use portmapping_dataplane::Backend;
use portmapping_dataplane::Flavour;
use portmapping_dataplane::Settings;
use portmapping_dataplane::change_monitor::ChangeMonitor;
use portmapping_dataplane::migration::BackendMigration;
use portmapping_dataplane::snapshot::Snapshot;
use portmapping_dataplane::{
    AddressSelection, Dataplane, DataplaneError, Observed, Tools, Unanswered,
};
use portmapping_shared::{ContainerPort, HostPort, Mapping, Plan, PortRange, Protocol};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::netns::Netns;

/// A client, a node, and two pods on the node's bridge.
pub(crate) struct Lab {
    pub(crate) client: Netns,
    pub(crate) node: Netns,
    pub(crate) pod1: Netns,
    pub(crate) pod2: Netns,
}

pub(crate) const NODE: &str = "172.30.0.1";
pub(crate) const NODE_V6: &str = "fd30::1";
pub(crate) const OTHER_NODE_ADDRESS: &str = "172.30.0.3";
pub(crate) const CLIENT: &str = "172.30.0.2";
pub(crate) const CLIENT_V6: &str = "fd30::2";
pub(crate) const POD1: &str = "10.88.0.11";
pub(crate) const POD1_V6: &str = "fd88::11";
pub(crate) const POD2: &str = "10.88.0.12";
pub(crate) const POD2_V6: &str = "fd88::12";

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self {
            client: Netns::new(),
            node: Netns::new(),
            pod1: Netns::new(),
            pod2: Netns::new(),
        };
        lab.node.sh(&format!(
            "ip link add up0 type veth peer name eth0 netns {client}
             ip addr add {NODE}/24 dev up0
             ip addr add {OTHER_NODE_ADDRESS}/24 dev up0
             ip addr add {NODE_V6}/64 dev up0 nodad
             ip link set up0 up
             ip link add br0 type bridge forward_delay 0 mcast_snooping 0
             ip addr add 10.88.0.1/24 dev br0
             ip addr add fd88::1/64 dev br0 nodad
             ip link set br0 up
             for pod in 1:{pod1} 2:{pod2}; do
                 ip link add p${{pod%%:*}} type veth peer name eth0 netns ${{pod#*:}}
                 ip link set p${{pod%%:*}} master br0 up
                 ip link set p${{pod%%:*}} type bridge_slave hairpin on
             done",
            client = lab.client.path(),
            pod1 = lab.pod1.path(),
            pod2 = lab.pod2.path(),
        ));
        let ends = [
            (
                &lab.client,
                format!("{CLIENT}/24"),
                format!("{CLIENT_V6}/64"),
                NODE,
                NODE_V6,
            ),
            (
                &lab.pod1,
                format!("{POD1}/24"),
                format!("{POD1_V6}/64"),
                "10.88.0.1",
                "fd88::1",
            ),
            (
                &lab.pod2,
                format!("{POD2}/24"),
                format!("{POD2_V6}/64"),
                "10.88.0.1",
                "fd88::1",
            ),
        ];
        for (end, v4, v6, gateway, gateway_v6) in ends {
            end.sh(&format!(
                "ip addr add {v4} dev eth0
                 ip addr add {v6} dev eth0 nodad
                 ip link set eth0 up
                 ip route add default via {gateway}
                 ip -6 route add default via {gateway_v6}"
            ));
        }
        lab
    }

    pub(crate) fn driver(&self, backend: impl Into<Backend>) -> Driver<'_> {
        self.driver_with(backend, &settings_for(range("20000-29999")))
    }

    pub(crate) fn driver_with(
        &self,
        backend: impl Into<Backend>,
        settings: &Settings,
    ) -> Driver<'_> {
        let backend = backend.into();
        Driver {
            node: &self.node,
            driver: Box::new(
                self.node
                    .run(|| open(backend, settings, &tools()))
                    .expect("open the driver"),
            ),
        }
    }

    /// Returns all rules as text without counters and dates: those that iptables of the backend's
    /// flavour shows, or all of nftables.
    pub(crate) fn rules(&self, backend: impl Into<Backend>) -> String {
        let flavour = match backend.into() {
            Backend::Iptables(flavour) => flavour,
            Backend::Nftables => return self.node.sh("nft --stateless list ruleset"),
        };
        let kind = flavour.as_str().trim_start_matches("iptables-");
        let text = self
            .node
            .sh(&format!("iptables-{kind}-save; ip6tables-{kind}-save"));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n");
        lines.collect()
    }

    /// Removes the rules of the backend, as a restarted firewall would.
    pub(crate) fn flush(&self, backend: Backend) {
        match backend {
            Backend::Iptables(flavour) => self.iptables(flavour, "-t nat -F"),
            Backend::Nftables => _ = self.node.sh("nft delete table inet portmapping"),
        }
    }

    /// Runs an iptables command of a flavour on the node.
    pub(crate) fn iptables(&self, flavour: Flavour, args: &str) {
        self.node.sh(&format!("{flavour} -w 30 {args}"));
    }
}

/// Returns the iptables for foreign rules on a node with this backend.
pub(crate) fn iptables_of(backend: Backend) -> Flavour {
    match backend {
        Backend::Iptables(flavour) => flavour,
        Backend::Nftables => Flavour::Nft,
    }
}

/// The driver under test, which runs inside the node.
pub(crate) struct Driver<'a> {
    node: &'a Netns,
    driver: Box<dyn Dataplane>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(node: &'a Netns, driver: Box<dyn Dataplane>) -> Self {
        Self { node, driver }
    }

    pub(crate) fn try_apply(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        let applied = self.apply_only(plan);
        let _ = self.clear_flows();
        applied
    }

    /// Changes the rules and leaves the flows.
    pub(crate) fn apply_only(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        self.node.run(|| self.driver.apply(plan))
    }

    /// Returns how often that failed.
    pub(crate) fn clear_flows(&self) -> u64 {
        let flows = self.driver.stale_flows();
        self.node.run(|| flows.clear())
    }

    /// The same without the right to read flows.
    pub(crate) fn clear_flows_without_right(&self) -> u64 {
        let flows = self.driver.stale_flows();
        self.node.run(|| {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, none).expect("drop the capabilities of this thread");
            flows.clear()
        })
    }

    /// What a start does with the mappings that it reads.
    pub(crate) fn find_flows(&mut self) {
        let found = self.observe().mappings;
        self.driver.stale_flows().found(&found);
    }

    /// Records a port that has no mapping, as a start does that finds it held.
    pub(crate) fn find_unmapped(&self, protocol: Protocol, port: u16) {
        let port = HostPort::new(port).expect("a port");
        let flows = self.driver.stale_flows();
        flows.found_unmapped([(protocol, port)]);
    }

    pub(crate) fn observe(&mut self) -> Observed {
        self.node.run(|| self.driver.observe()).expect("observe")
    }

    /// Does what the reconciler does (observe, plan, apply), and asserts that nothing is left to
    /// do.
    pub(crate) fn reconcile(&mut self, desired: &[Mapping]) {
        let desired: BTreeSet<Mapping> = desired.iter().cloned().collect();
        let plan = Plan::new(&desired, &self.observe().mappings);
        self.try_apply(&plan).expect("apply");
        self.assert_is(&desired);
    }

    /// Observes and repairs, without an observation afterwards.
    pub(crate) fn repair(&mut self, desired: &[Mapping]) {
        let desired: BTreeSet<Mapping> = desired.iter().cloned().collect();
        let plan = Plan::new(&desired, &self.observe().mappings);
        self.try_apply(&plan).expect("apply");
    }

    /// The Node object names these addresses; the next observation uses them.
    pub(crate) fn name_addresses(&mut self, addresses: &[&str]) -> Observed {
        let addresses = addresses.iter().copied().map(ip).collect();
        self.driver.set_host_addresses(&addresses);
        self.observe()
    }

    /// Pods have these static host ports; the next observation uses them.
    pub(crate) fn set_static_ports(&mut self, protocol: Protocol, ports: &[u16]) {
        let port = |number: &u16| (protocol, HostPort::new(*number).expect("a port"));
        let ports = ports.iter().map(port).collect();
        self.driver.set_static_ports(&ports);
    }

    pub(crate) fn unanswered(&self, mappings: &[Mapping]) -> Unanswered {
        let flows = self.driver.stale_flows();
        let mappings = mappings.iter().cloned().collect();
        self.node
            .run(|| flows.unanswered(&mappings))
            .expect("flows")
    }

    pub(crate) fn set_masquerade(&mut self, on: bool) {
        self.driver.set_masquerade(on);
    }

    pub(crate) fn changes(&self) -> ChangeMonitor {
        self.driver.changes()
    }

    pub(crate) fn create(&mut self, mappings: &[Mapping]) {
        let to_create = mappings.to_vec();
        self.try_apply(&Plan {
            to_create,
            ..Plan::default()
        })
        .expect("create");
    }

    pub(crate) fn remove(&mut self, mappings: &[Mapping]) {
        let to_remove = mappings.to_vec();
        self.try_apply(&Plan {
            to_remove,
            ..Plan::default()
        })
        .expect("remove");
    }

    pub(crate) fn uninstall(&mut self) {
        self.node
            .run(|| self.driver.uninstall())
            .expect("uninstall");
    }

    pub(crate) fn assert_is(&mut self, desired: &BTreeSet<Mapping>) {
        let observed = self.observe();
        assert_eq!(&observed.mappings, desired);
        assert!(observed.intact, "the frame is not whole");
    }
}

/// Opens the driver as the enforcer does: from a snapshot of the existing rules.
pub(crate) fn open(
    backend: Backend,
    settings: &Settings,
    tools: &Tools,
) -> Result<BackendMigration, DataplaneError> {
    let snapshot = Snapshot::read(tools, settings);
    BackendMigration::open(backend, settings, tools.clone(), snapshot).map(|(driver, _)| driver)
}

/// Reads the rules as the enforcer does.
pub(crate) fn snapshot(tools: &Tools) -> Snapshot {
    Snapshot::read(tools, &settings_for(range("20000-29999")))
}

/// Returns settings whose host addresses are all addresses of the lab's node.
pub(crate) fn settings_for(range: PortRange) -> Settings {
    let addresses = [NODE, OTHER_NODE_ADDRESS, NODE_V6, "10.88.0.1", "fd88::1"];
    Settings {
        selection: AddressSelection::All,
        host_addresses: addresses.map(ip).into(),
        ..Settings::new(range)
    }
}

/// The programs of this machine, with time for them.
pub(crate) fn tools() -> Tools {
    let usual = Tools::default();
    Tools {
        deadline: patience(usual.deadline),
        ..usual
    }
}

/// Returns a limit that an emulated machine can keep: `PORTMAPPING_TEST_SLOWNESS` says how many times
/// slower it is.
pub(crate) fn patience(limit: Duration) -> Duration {
    let slowness = std::env::var("PORTMAPPING_TEST_SLOWNESS").ok();
    limit * slowness.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Ends a test whose feature the kernel lacks. Kernels have the feature since this version; a probe that finds
/// none in such a kernel is wrong, and the test fails.
pub(crate) fn skip(why: &str, since: (u32, u32)) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    let release = release.trim();
    assert!(
        version(release) < since,
        "would be skipped on Linux {release}, not older than {since:?}: {why}"
    );
    println!("skipped: {why}");
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

pub(crate) fn range(text: &str) -> PortRange {
    text.parse().expect("range")
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// Returns an endpoint of a node.
pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

/// Returns a mapping of the pod with that address.
pub(crate) fn map(protocol: Protocol, host_port: u16, pod: &str, container_port: u16) -> Mapping {
    Mapping {
        protocol,
        host_port: HostPort::new(host_port).expect("host port"),
        host_ip: None,
        pod_ip: ip(pod),
        container_port: ContainerPort::new(container_port).expect("container port"),
        owner: format!("uid-{}", pod.replace(['.', ':'], "-"))
            .parse()
            .expect("uid"),
    }
}
