//! What processes do in namespaces of their own, where they may have any process id, and any
//! file anywhere.

use std::process::Command;

use mlskeyd_tests::rig::Process;

use crate::scene::{DOORS, Scene, ran_inside};

/// The process that connected is gone, and an app has its id now.
#[test]
fn an_app_that_got_the_process_id_is_not_taken_for_the_caller() {
    let test = "namespaces::an_app_that_got_the_process_id_is_not_taken_for_the_caller";
    if ran_inside(test, &["--pid", "--fork", "--mount-proc"]) {
        return;
    }
    let scene = Scene::new();
    for (door, go) in DOORS.into_iter().zip(["go", "go-too"]) {
        poses_with_a_process_id(&scene, door, go);
    }
}

fn poses_with_a_process_id(scene: &Scene, door: &str, go: &str) {
    let child = format!("child @evil await @{go} hello challenge echo answer --");
    let mut evil = scene.start_parent("evil", &format!("{door} {child}"));
    let pid = i32::try_from(evil.child.id()).unwrap();
    evil.end();
    let wire = gets_process_id(scene, pid);
    scene.happened(go);
    let line = evil.line();
    assert!(
        line.starts_with("refused: the process that connected has ended"),
        "{line}"
    );
    assert!(wire.runs());
}

/// Runs a program in a root directory and mount namespace of its own, where `prepare` has
/// been done to the root `$R`.
fn in_own_root(scene: &Scene, prepare: &str, arguments: &[&str]) -> String {
    let root = scene.path("root");
    std::fs::create_dir(&root).unwrap();
    let script = format!(
        "set -e; R={root}; for d in /*; do \
         if [ -L \"$d\" ]; then cp -P \"$d\" \"$R$d\"; \
         elif [ -d \"$d\" ]; then mkdir \"$R$d\"; mount --rbind \"$d\" \"$R$d\"; fi; done; \
         {prepare}; exec chroot \"$R\" \"$@\""
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The app, with this process id.
fn gets_process_id(scene: &Scene, pid: i32) -> Process {
    let wire = (0..1000).find_map(|_| {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let wire = scene.start("wire", "rest");
        (wire.pid().as_raw_nonzero().get() == pid).then_some(wire)
    });
    wire.expect("the process id is there to be had again")
}

/// The child still has the connection to the bus, and asks for a channel when its parent's id
/// is the app's: the bus says what it saw at first.
#[test]
fn a_bus_that_knows_an_old_process_id_makes_no_app() {
    let test = "namespaces::a_bus_that_knows_an_old_process_id_makes_no_app";
    if ran_inside(test, &["--pid", "--fork", "--mount-proc"]) {
        return;
    }
    let scene = Scene::new();
    let child = "child @evil await @go ask-for-channel hello challenge echo answer --";
    let mut evil = scene.start_parent("evil", &format!("connect-bus @bus {child}"));
    let pid = i32::try_from(evil.child.id()).unwrap();
    evil.end();
    let wire = gets_process_id(&scene, pid);
    scene.happened("go");
    let line = evil.line();
    assert!(
        line.starts_with("refused: another process has answered"),
        "{line}"
    );
    assert!(wire.runs());
}

/// Who may make namespaces writes its own description of a sandbox: that is no more than
/// observed.
#[test]
fn a_root_that_says_it_is_a_flatpak_enforces_nothing() {
    if ran_inside(
        "namespaces::a_root_that_says_it_is_a_flatpak_enforces_nothing",
        &[],
    ) {
        return;
    }
    let scene = Scene::with("flatpak = \"com.wire.WireDesktop\"\n");
    let prepare = "printf '[Application]\\nname=com.wire.WireDesktop\\n' > \"$R/.flatpak-info\"";
    let socket = scene.socket();
    let made = in_own_root(
        &scene,
        prepare,
        &[&scene.path("evil"), "identity", &socket, "alice"],
    );
    assert!(made.starts_with("made"), "{made}");
    let (app, identified, program) = scene.last_caller();
    assert_eq!((app.as_str(), identified.as_str()), ("wire", "observed"));
    assert!(
        program.ends_with(" (Flatpak com.wire.WireDesktop)"),
        "{program}"
    );
}

/// The path of a program is what its own mount namespace says.
#[test]
fn a_program_that_is_mounted_over_an_app_is_not_that_app() {
    if ran_inside(
        "namespaces::a_program_that_is_mounted_over_an_app_is_not_that_app",
        &[],
    ) {
        return;
    }
    let scene = Scene::new();
    let (evil, wire, socket) = (scene.path("evil"), scene.path("wire"), scene.socket());
    let script = format!("mount --bind {evil} {wire} && exec {wire} identity {socket} alice");
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .status();
    assert!(status.unwrap().success());
    assert_eq!(
        scene.last_caller(),
        ("default".into(), "unknown".into(), wire)
    );
}

/// A daemon that may not look at processes (it has no `CAP_SYS_PTRACE`) and says so once.
#[test]
fn a_caller_that_cannot_be_seen_is_no_app() {
    let test = "namespaces::a_caller_that_cannot_be_seen_is_no_app";
    if ran_inside(test, &["--mount", "setpriv", "--bounding-set=-sys_ptrace"]) {
        return;
    }
    let scene = Scene::new();
    let socket = scene.socket();
    for name in ["alice", "bob"] {
        let made = scene.output("wire", 0, &["hide", "identity", &socket, name]);
        assert!(made.starts_with("made"), "{made}");
        assert_eq!(
            scene.last_caller(),
            ("default".into(), "unknown".into(), String::new())
        );
    }
    assert_eq!(scene.daemon.log().matches("CAP_SYS_PTRACE").count(), 1);
    // Those who can be seen are.
    scene.output("wire", 0, &["identity", &socket, "alice"]);
    assert_eq!(scene.last_caller().0, "wire");
}

/// What Flatpak does for an app that may talk to a bus: the app's process is in a sandbox, and
/// `xdg-dbus-proxy`, in another one that has the same description, speaks for it.
#[test]
fn a_flatpak_is_known_behind_its_proxy() {
    if ran_inside("namespaces::a_flatpak_is_known_behind_its_proxy", &[]) {
        return;
    }
    let scene = Scene::with("flatpak = \"com.wire.WireDesktop\"\n");
    let sandbox = |name: &str, info: &str| {
        std::fs::write(scene.stage.path(name), info).unwrap();
        let mut command = Command::new("bwrap");
        command.args(["--ro-bind", "/usr", "/usr", "--unshare-pid"]);
        command.args(["--proc", "/proc", "--dev", "/dev", "--die-with-parent"]);
        for library in ["bin", "lib", "lib64"] {
            command.args([
                "--symlink",
                &format!("usr/{library}"),
                &format!("/{library}"),
            ]);
        }
        command.args(["--bind", &scene.path(""), &scene.path("")]);
        command.args(["--ro-bind", &scene.path(name), "/.flatpak-info"]);
        command
    };
    let own = "[Application]\nname=com.wire.WireDesktop\n[Instance]\ninstance-id=4711\n";
    let mut proxy = sandbox("proxy-info", own);
    proxy.args(["xdg-dbus-proxy", "--fd=1", &scene.bus_address()]);
    proxy.args([
        &scene.path("proxy"),
        "--filter",
        "--talk=org.mlskeyd.Custody1",
    ]);
    let mut proxy = Process::start("proxy", proxy, &scene.stage.path("proxy.log"));
    // It writes a byte when it listens.
    proxy.byte();
    let through = format!("unix:path={}", scene.path("proxy"));
    let greets = |name: &str, info: &str| {
        let mut command = sandbox(name, info);
        command.args([&scene.path("evil"), "channel", &through]);
        command.args(["hello", "challenge", "echo", "answer"]);
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(greets("app-info", own), "agreed 0\n");
    for (name, another) in [
        ("instance", own.replace("4711", "4712")),
        ("app", own.replace("com.wire.WireDesktop", "com.evil")),
        (
            "none",
            "[Application]\nname=com.wire.WireDesktop\n".to_owned(),
        ),
    ] {
        let line = greets(name, &another);
        assert!(
            line.starts_with("refused: another process has answered"),
            "{name}: {line}"
        );
    }
}
