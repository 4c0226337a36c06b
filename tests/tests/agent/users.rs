//! Two users, each with an agent.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use mlskeyd_tests::member::client;
use mlskeyd_tests::rig::PIN;

use super::scene::{Scene, create, refusal};

/// Another user.
const STRANGER: u32 = 65_533;

/// Says a test that it acts as the stranger, at the daemon with this socket.
const AS_STRANGER: &str = "MLSKEYD_TEST_SOCKET";

const TEST: &str = "users::a_prompt_reaches_its_user_alone_and_what_is_unlocked_is_for_that_one";

/// A program as the stranger runs it.
fn strangers(scene: &Scene, program: &Path) -> Command {
    // Where other users may run it.
    let copy = scene.stage.path(program.file_name().unwrap());
    std::fs::copy(program, &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(copy);
    command.current_dir("/").gid(STRANGER).uid(STRANGER);
    command
}

#[test]
fn a_prompt_reaches_its_user_alone_and_what_is_unlocked_is_for_that_one() {
    if let Some(socket) = std::env::var_os(AS_STRANGER) {
        let refused = refusal(create(&client(Path::new(&socket)), "mallory"));
        assert!(refused.contains("another one has unlocked it"), "{refused}");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        // As root of a user namespace, where there are several users.
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--map-auto"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let scene = Scene::new();
    let right = format!("pin {PIN}");
    let ctl = scene.stage.programs().ctl.clone();
    let strangers_agent = scene.agent_as("strangers", &[&right], strangers(&scene, &ctl));
    let agent = scene.agent("agent", &[&right]);
    create(&scene.client(), "alice").unwrap();
    assert_eq!((agent.questions(), strangers_agent.questions()), (1, 0));

    let own = std::env::current_exe().unwrap();
    let mut inside = strangers(&scene, &own);
    inside.args([TEST, "--exact", "--nocapture"]);
    inside.env(AS_STRANGER, scene.daemon.socket());
    let output = inside.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 passed"), "{said}\n{complained}");
    assert_eq!(strangers_agent.questions(), 0);
}
