//! Files as they come, change and go.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use portmapping_enforcer_core::SandboxUpdate;

use crate::lab::{Lab, block_on, good, result};

#[tokio::test]
async fn a_sandbox_is_up_with_its_file_and_down_without() {
    let mut lab = Lab::new();
    assert!(lab.listed().await.is_empty());
    lab.write("cni-loopback-a-lo", result("a", "lo", "127.0.0.1/8"));
    lab.write("pods-a-eth0", good("a"));
    assert_eq!(lab.up().await, "a");
    lab.write("pods-b-eth0", good("b"));
    assert_eq!(lab.up().await, "b");
    lab.remove("cni-loopback-a-lo");
    lab.remove("pods-a-eth0");
    assert_eq!(lab.down().await, "a");
    lab.shows("cni_results_watched 1").await;
    lab.shows("cni_results_total{result=\"sandbox\"} 2").await;
    lab.shows("cni_results_total{result=\"other\"} 1").await;
    lab.shows("cni_results_total{result=\"removed\"} 2").await;
    lab.end().await;
}

#[tokio::test]
async fn nothing_is_read_before_it_is_closed() {
    let mut lab = Lab::new();
    lab.listed().await;
    let text = good("a");
    let mut file = File::create(lab.file("pods-a-eth0")).unwrap();
    file.write_all(&text.as_bytes()[..100]).unwrap();
    // a file that comes after tells that the events before it were seen
    lab.write("pods-b-eth0", good("b"));
    assert_eq!(lab.up().await, "b");
    file.write_all(&text.as_bytes()[100..]).unwrap();
    drop(file);
    assert_eq!(lab.up().await, "a");
    lab.end().await;
}

#[tokio::test]
async fn a_file_closed_half_written_is_mended_later() {
    let mut lab = Lab::new();
    lab.listed().await;
    let text = good("a");
    lab.write("pods-a-eth0", &text.as_bytes()[..100]);
    lab.shows("cni_results_total{result=\"unusable\"} 1").await;
    lab.write("pods-a-eth0", &text);
    assert_eq!(lab.up().await, "a");
    lab.write("pods-a-eth0", "");
    lab.shows("cni_results_total{result=\"unusable\"} 2").await;
    lab.remove("pods-a-eth0");
    assert_eq!(lab.down().await, "a", "what it said before still held");
    lab.end().await;
}

#[tokio::test]
async fn a_file_rewritten_in_place_tells_what_it_says_now() {
    let mut lab = Lab::new();
    lab.listed().await;
    lab.write("f", good("a"));
    assert_eq!(lab.up().await, "a");
    lab.write("f", result("a", "eth0", "10.1.0.9/24"));
    let SandboxUpdate::Up(sandbox) = lab.next().await else {
        panic!("it is up")
    };
    assert_eq!(sandbox.ips[0].to_string(), "10.1.0.9");
    lab.write("f", good("b"));
    assert_eq!((lab.down().await, lab.up().await), ("a".into(), "b".into()));
    lab.end().await;
}

#[tokio::test]
async fn a_file_moved_in_counts_and_one_moved_out_is_gone() {
    let mut lab = Lab::new();
    lab.listed().await;
    let elsewhere = lab.parent().join("elsewhere");
    fs::write(&elsewhere, good("a")).unwrap();
    fs::rename(&elsewhere, lab.file("f")).unwrap();
    assert_eq!(lab.up().await, "a");
    fs::rename(lab.file("f"), &elsewhere).unwrap();
    assert_eq!(lab.down().await, "a");
    lab.end().await;
}

#[tokio::test]
async fn leftovers_are_listed_with_the_time_they_were_written() {
    let mut lab = Lab::with(|results| {
        fs::create_dir(results).unwrap();
        for (name, seconds) in [("old", 1000), ("new", 2000)] {
            let path = results.join(name);
            fs::write(&path, good(name)).unwrap();
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            let file = File::options().write(true).open(path).unwrap();
            file.set_times(FileTimes::new().set_modified(time)).unwrap();
        }
    });
    let SandboxUpdate::Listed(mut sandboxes) = lab.next().await else {
        panic!("the list comes first")
    };
    sandboxes.sort_by_key(|sandbox| sandbox.written);
    let found: Vec<(String, u64)> = sandboxes
        .iter()
        .map(|sandbox| (sandbox.id.to_string(), sandbox.written.as_secs()))
        .collect();
    assert_eq!(found, [("old".into(), 1000), ("new".into(), 2000)]);
    lab.remove("old");
    assert_eq!(lab.down().await, "old");
    lab.end().await;
}

#[tokio::test]
async fn only_regular_files_are_opened() {
    let hostile = |dir: &std::path::Path| {
        let outside = dir.parent().unwrap().join("outside");
        fs::write(&outside, good("linked")).unwrap();
        symlink(&outside, dir.join("link")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        // to open a pipe without a writer would wait for ever
        nix::unistd::mkfifo(&dir.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        fs::create_dir(dir.join("directory")).unwrap();
        std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        fs::write(dir.join("large"), vec![b' '; 2 << 20]).unwrap();
        fs::write(dir.join("garbage"), [0xff; 4096]).unwrap();
        fs::write(dir.join("new\nline"), "{}").unwrap();
        fs::write(dir.join("nobody"), good("x").replace("uid-x", "uid x")).unwrap();
        fs::write(dir.join("loopback"), result("l", "eth0", "127.0.0.1/8")).unwrap();
    };
    // there at the start
    let mut lab = Lab::with(|results| {
        fs::create_dir(results).unwrap();
        hostile(results);
        fs::write(results.join("good"), good("good")).unwrap();
    });
    assert_eq!(lab.listed().await, ["good"]);
    lab.end().await;

    // coming later
    let mut lab = Lab::new();
    lab.listed().await;
    let aside = lab.parent().join("aside");
    fs::create_dir(&aside).unwrap();
    hostile(&aside);
    for entry in fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), lab.results().join(entry.file_name())).unwrap();
    }
    lab.write("good", good("good"));
    assert_eq!(lab.up().await, "good", "the others are no news");
    lab.end().await;
}

#[test]
fn an_address_of_the_node_itself_is_no_pods() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let in_namespace = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let added = Command::new("ip")
            .args(["addr", "add", "10.99.0.1/32", "dev", "lo"])
            .status();
        assert!(added.unwrap().success());
        block_on(async {
            let mut lab = Lab::new();
            lab.listed().await;
            lab.write("node", result("node", "eth0", "10.99.0.1/24"));
            lab.write("pod", result("pod", "eth0", "10.99.0.2/24"));
            assert_eq!(lab.up().await, "pod");
            lab.shows("cni_results_total{result=\"unusable\"} 1").await;
            lab.end().await;
        });
    };
    thread::spawn(in_namespace).join().unwrap();
}
