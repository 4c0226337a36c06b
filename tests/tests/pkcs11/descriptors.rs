//! What a helper may hold of the daemon's.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{SoftHsm, Stage};

/// TSS leaves its connection to a TPM open for whatever program is started just then.
#[test]
fn a_helper_keeps_nothing_that_the_daemon_has_open() {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    let (door, theirs) = UnixStream::pair().unwrap();
    let lock = File::create(stage.path("lock")).unwrap();
    let mut helper = Command::new("sh")
        .args(["-c", "exec 7</dev/zero; exec \"$0\" \"$1\""])
        .arg(&stage.programs().pkcs11)
        .arg(SoftHsm::module())
        .envs(softhsm.environment())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(lock)
        .spawn()
        .unwrap();
    let of_it = |what: &str| format!("/proc/{}/{what}", helper.id());
    // It reads no module before it is alone.
    while !std::fs::read_to_string(of_it("maps"))
        .unwrap()
        .contains("libsofthsm2")
    {
        std::thread::yield_now();
    }
    assert!(!std::fs::exists(of_it("fd/7")).unwrap());
    drop(door);
    assert!(helper.wait().unwrap().success());
}
