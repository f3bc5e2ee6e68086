//! Which directories and files are accepted.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;

#[test]
fn creates_the_directory_with_mode_0700() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("a/run");
    let one = RunDir::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    let two = RunDir::open(&path).unwrap();
    assert_ne!(one.own, two.own, "names are unique");
    assert!(one.own < two.own, "and sort by age");
}

#[test]
fn refuses_a_directory_that_others_can_write_to() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("run");
    fs::create_dir(&path).unwrap();
    for (mode, fine) in [
        (0o755, true),
        (0o700, true),
        (0o775, false),
        (0o1777, false),
    ] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let opened = RunDir::open(&path);
        assert_eq!(opened.is_ok(), fine, "{mode:o}");
        if let Err(error) = opened {
            assert!(
                error.to_string().contains(&format!("mode {mode:04o}")),
                "{error}"
            );
        }
    }
    let link = parent.path().join("link");
    symlink(parent.path(), &link).unwrap();
    assert!(
        RunDir::open(&link).is_err(),
        "the owner of the link could point it to another directory"
    );
    fs::write(parent.path().join("file"), "").unwrap();
    assert!(matches!(
        RunDir::open(&parent.path().join("file")),
        Err(KeeperError::RunDir { .. })
    ));
}

#[test]
fn peers_are_sockets_of_other_keepers_youngest_first() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(dir.path()).unwrap();
    let (_listener, published) = run_dir.publish().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in [
        "keeper-1-1.sock",
        "keeper-3-1.sock",
        "keeper-2-1.sock",
        "other.sock",
    ] {
        drop(UnixListener::bind(at(name)).unwrap());
    }
    drop(UnixListener::bind(at(".keeper-4-1.sock.tmp")).unwrap());
    fs::write(at("keeper-5-1.sock"), "").unwrap();
    symlink(at("keeper-1-1.sock"), at("keeper-6-1.sock")).unwrap();
    let expected = ["keeper-3-1.sock", "keeper-2-1.sock", "keeper-1-1.sock"].map(at);
    assert_eq!(run_dir.peers().unwrap(), expected);
    assert!(
        at(".keeper-4-1.sock.tmp").exists(),
        "its keeper may still be starting"
    );

    let own = at(&run_dir.own);
    assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o600);
    drop(published);
    assert!(!own.exists());
}

#[test]
fn old_temporary_socket_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(dir.path()).unwrap();
    let path = dir.path().join(".keeper-1-1.sock.tmp");
    drop(UnixListener::bind(&path).unwrap());
    let long_ago = rustix::fs::Timespec {
        tv_sec: 1_000_000,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: long_ago,
        last_modification: long_ago,
    };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
    assert!(run_dir.peers().unwrap().is_empty());
    assert!(!path.exists());
}

#[test]
fn only_one_keeper_has_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(dir.path()).unwrap();
    let soon = || Instant::now() + Duration::from_millis(20);
    let held = run_dir.lock(soon()).unwrap();
    assert!(held.is_some());
    assert!(run_dir.lock(soon()).unwrap().is_none());
    drop(held);
    assert!(run_dir.lock(soon()).unwrap().is_some());
}

#[test]
fn a_lock_whose_file_was_removed_while_a_keeper_waited_counts_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(dir.path()).unwrap();
    let path = dir.path().join("lock");
    let removed = run_dir.lock(Instant::now()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| run_dir.lock(deadline).unwrap());
        let opened = || {
            let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
            let files = files.filter_map(|file| fs::read_link(file.path()).ok());
            files.filter(|file| *file == path).count()
        };
        while opened() < 2 {
            thread::yield_now();
        }
        fs::remove_file(&path).unwrap();
        let held = run_dir.lock(Instant::now()).unwrap();
        drop(removed);
        assert!(held.is_some() && waiting.join().unwrap().is_none());
    });
}

#[test]
fn other_users_cannot_open_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(dir.path()).unwrap();
    let path = dir.path().join("lock");
    // one that an earlier version left, and a new one
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    for _ in 0..2 {
        let lock = run_dir.lock(Instant::now()).unwrap();
        assert!(lock.is_some());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
    }
}
