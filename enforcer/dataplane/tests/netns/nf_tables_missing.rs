//! A kernel without `nf_tables`: a filter on system calls answers like a kernel without netfilter's
//! netlink, to this thread and to the programs that it starts.

use nix::libc;
use portmapping_dataplane::Flavour;
use portmapping_dataplane::detect::detect;
use portmapping_dataplane::migration::BackendMigration;
use portmapping_dataplane::{Dataplane as _, DataplaneError, uninstall};
use portmapping_shared::Plan;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{self, Backend, Lab, NODE, POD1, at, map, range};
use crate::serve::{ask_tcp, serve};

/// Runs a closure on a thread of a node that has no netlink to netfilter.
fn without_netfilter_netlink<T: Send>(lab: &Lab, work: impl FnOnce() -> T + Send) -> T {
    lab.node.run(|| {
        refuse_netfilter_netlink();
        work()
    })
}

/// Makes `socket(AF_NETLINK, ..., NETLINK_NETFILTER)` fail on this thread from now on.
fn refuse_netfilter_netlink() {
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    const THIRD_ARGUMENT: u32 = 32;
    let step = |code: u32, over, value| libc::sock_filter {
        code: u16::try_from(code).expect("a short code"),
        jt: 0,
        jf: over,
        k: value,
    };
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset);
    // if the value is equal go to the next instruction, else skip `over` instructions to the end
    let is = |value: i64, over| {
        let value = u32::try_from(value).expect("a small number");
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, over, value)
    };
    let answer = |value| step(libc::BPF_RET | libc::BPF_K, 0, value);
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT.cast_unsigned();
    let mut filter = [
        load(NUMBER),
        is(libc::SYS_socket, 5),
        load(FIRST_ARGUMENT),
        is(libc::AF_NETLINK.into(), 3),
        load(THIRD_ARGUMENT),
        is(libc::NETLINK_NETFILTER.into(), 1),
        answer(refused),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).expect("short"),
        filter: filter.as_mut_ptr(),
    };
    #[allow(unsafe_code)] // no crate wraps it
    // SAFETY: the program and its filter outlive the call, which copies them; it concerns this
    // thread alone
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn open(backend: Backend) -> Result<BackendMigration, DataplaneError> {
    let settings = lab::settings_for(range("20000-29999"));
    lab::open(backend, &settings, &lab::tools())
}

#[test]
fn backends_that_need_nf_tables_say_so() {
    let lab = Lab::new();
    let error = without_netfilter_netlink(&lab, || open(Backend::Nftables).err());
    let error = error.expect("nftables without nf_tables").to_string();
    assert!(error.contains("use --backend=iptables"), "{error}");
    let error = without_netfilter_netlink(&lab, || open(Flavour::Nft.into()).err());
    let error = error.expect("iptables-nft without nf_tables").to_string();
    assert!(error.contains("--iptables=legacy"), "{error}");
}

#[test]
fn iptables_legacy_works_without_nf_tables() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mappings = [map(Tcp, 20000, POD1, 9040), map(Udp, 20000, POD1, 9040)];
    without_netfilter_netlink(&lab, || {
        let detected = detect(&lab::snapshot(&lab::tools())).expect("detect");
        assert_eq!(detected.flavour, Flavour::Legacy, "{}", detected.reason);
        let mut driver = open(Flavour::Legacy.into()).expect("open");
        let to_create = mappings.to_vec();
        driver
            .apply(&Plan {
                to_create,
                ..Plan::default()
            })
            .expect("apply");
        let observed = driver.observe().expect("observe");
        assert_eq!(observed.mappings, mappings.into());
        assert!(observed.intact);
        // without netlink, stale entries cannot be cleared; each failure is counted
        assert!(driver.stale_flows().clear() > 0);
    });
    let answer = ask_tcp(&lab.client, at(NODE, 20000)).expect("an answer");
    assert!(answer.starts_with("pod1"), "{answer}");
    without_netfilter_netlink(&lab, || uninstall(&lab::tools())).expect("uninstall");
    assert!(!lab.rules(Flavour::Legacy).contains("PORTMAPPING"));
}
