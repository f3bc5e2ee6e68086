//! A network namespace without a name: it exists as long as the file that refers to it is open.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::{panic, process, thread};

use nix::sched::{CloneFlags, setns, unshare};

pub(crate) struct Netns {
    file: File,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("these tests make network namespaces: run them as root");
            File::open("/proc/thread-self/ns/net").expect("the new namespace as a file")
        };
        let netns = Self {
            file: joined(thread::spawn(make).join()),
        };
        netns.sh("ip link set lo up");
        netns.set("net/ipv4/ip_forward", "1");
        netns.set("net/ipv6/conf/all/forwarding", "1");
        for scope in ["all", "default"] {
            netns.set(&format!("net/ipv4/conf/{scope}/rp_filter"), "0");
            netns.set(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
        }
        // without a rate limit, every refused datagram gets an ICMP error
        netns.set("net/ipv4/icmp_ratelimit", "0");
        netns.set("net/ipv6/icmp/ratelimit", "0");
        netns
    }

    /// Runs a closure on a thread inside; sockets and processes it makes stay inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            joined(inside.join())
        })
    }

    /// Runs a shell script inside and returns its output.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", script]).output());
        let output = output.expect("sh");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a program inside with this input.
    pub(crate) fn feed(&self, program: &str, args: &[&str], input: &str) {
        use std::io::Write as _;
        use std::process::Stdio;
        let status = self.run(|| {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .spawn()
                .expect(program);
            child
                .stdin
                .take()
                .expect("stdin")
                .write_all(input.as_bytes())
                .expect("write");
            child.wait().expect("wait")
        });
        assert!(status.success(), "{program} {args:?} < {input}");
    }

    /// Writes a sysctl; `/proc/sys/net` shows the namespace of the thread that opens it.
    pub(crate) fn set(&self, sysctl: &str, value: &str) {
        let path = format!("/proc/sys/{sysctl}");
        self.run(|| std::fs::write(&path, value)).expect(&path);
    }

    /// Returns a path by which `ip link ... netns PATH` finds it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }
}

fn joined<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| panic::resume_unwind(panic))
}
