//! A kernel before Linux 5.7, which lets no process without `NET_RAW` bind a socket to a device: a
//! filter on system calls answers like it, to this thread and to the programs that it starts.

use nix::libc;
use portmapping_shared::Protocol::Udp;

use crate::world::{Node, bind_any, in_netns, ports};

/// Makes `setsockopt(..., SOL_SOCKET, SO_BINDTODEVICE, ...)` fail on this thread from now on.
fn refuse_binding_to_a_device() {
    const NUMBER: u32 = 0;
    const SECOND_ARGUMENT: u32 = 24;
    const THIRD_ARGUMENT: u32 = 32;
    let step = |code: u32, over, value| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: over,
        k: value,
    };
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset);
    // if the value is equal go to the next instruction, else skip `over` instructions to the end
    let is = |value: i64, over| {
        let value = u32::try_from(value).unwrap();
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, over, value)
    };
    let answer = |value| step(libc::BPF_RET | libc::BPF_K, 0, value);
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let mut filter = [
        load(NUMBER),
        is(libc::SYS_setsockopt, 5),
        load(SECOND_ARGUMENT),
        is(libc::SOL_SOCKET.into(), 3),
        load(THIRD_ARGUMENT),
        is(libc::SO_BINDTODEVICE.into(), 1),
        answer(refused),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
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

#[test]
fn udp_ports_are_held_where_binding_to_a_device_is_refused() {
    in_netns(|| {
        refuse_binding_to_a_device();
        let node = Node::new();
        let keeper = node.keeper("a");
        let held = ports(Udp, 20000, 2);
        keeper.hold(&held);
        for port in held {
            bind_any(port).unwrap_err();
        }
        let log = keeper.log();
        let told = "are held on all devices";
        assert_eq!(log.matches(told).count(), 1, "{log}");
        // the next keeper takes them over
        assert_eq!(node.successor("b").list().unwrap(), ports(Udp, 20000, 2));
    });
}
