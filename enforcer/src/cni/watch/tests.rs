use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use nix::unistd::{Uid, setfsuid};
use tempfile::TempDir;

use super::*;

/// Another user, because root is denied nothing.
const ANOTHER: Uid = Uid::from_raw(65534);

fn set_mode(dir: &Path, mode: u32) {
    fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_denied_directory_is_not_told_as_a_missing_one() {
    let root = TempDir::new().unwrap();
    set_mode(root.path(), 0o755);
    let closed = root.path().join("cni");
    let results = closed.join("results");
    fs::create_dir_all(&results).unwrap();
    let absent = root.path().join("absent");
    set_mode(&closed, 0);
    let dirs = Directories::new(vec![absent.clone(), results.clone()]);
    let look = move || {
        // of this thread only
        setfsuid(ANOTHER);
        (dirs.in_use(), chain(&none_in_use(&dirs)))
    };
    let (in_use, text) = std::thread::spawn(look).join().unwrap();
    set_mode(&closed, 0o755);
    assert_eq!(in_use, None);
    let path = format!("cannot watch {}; access is denied", results.display());
    assert!(text.contains(&path), "{text}");
    assert!(text.contains("SELinux"), "{text}");
    assert!(text.contains("Permission denied"), "{text}");

    let missing = none_in_use(&Directories::new(vec![absent.clone()]));
    let text = format!("no directory of {} exists", absent.display());
    assert_eq!(missing.to_string(), text);
}
