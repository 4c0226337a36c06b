//! `mlskeyctl doctor`: a daemon that is well, and what goes wrong with one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Stage};
use serde_json::Value;

use super::stderr;

/// A daemon, and its configuration.
struct Patient {
    daemon: Daemon,
    stage: Stage,
}

impl Patient {
    fn new(options: &Options) -> Self {
        let stage = Stage::new(programs!());
        let daemon = Daemon::start(&stage, options);
        Self { daemon, stage }
    }

    fn config(&self) -> String {
        let path = self.stage.path("daemon").join("mlskeyd.toml");
        path.display().to_string()
    }

    fn look(&self, config: &str) -> Output {
        let mut command = self.daemon.ctl_command(&["doctor", "--config", config]);
        command.output().unwrap()
    }

    /// What the check found: verdict, and what it says; and the exit code.
    fn found(&self, check: &str) -> (Option<i32>, String, String) {
        let output = self.look(&self.config());
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", stderr(&output)));
        let code = output.status.code();
        assert_eq!(json["good"], code == Some(0), "{json:#}");
        let findings = json["findings"].as_array().unwrap();
        let mut of_it = findings.iter().filter(|it| it["check"] == check);
        let finding = of_it
            .next()
            .unwrap_or_else(|| panic!("no {check} in {json:#}"));
        let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        (code, text("verdict"), text("what") + &text("do"))
    }
}

#[test]
fn a_daemon_that_is_well_fails_in_nothing() {
    let patient = Patient::new(&Options::default());
    let output = patient.look(&patient.config());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json["good"], output.status.code()),
        (&true.into(), Some(0)),
        "{json:#}"
    );
    let verdicts: Vec<(&str, &str)> = (json["findings"].as_array().unwrap().iter())
        .map(|it| {
            (
                it["check"].as_str().unwrap(),
                it["verdict"].as_str().unwrap(),
            )
        })
        .collect();
    for well in [
        "configuration",
        "daemon",
        "socket",
        "state-directory",
        "store-key",
        "registry",
        "audit-log",
        "devices",
        "policies",
        "certificates",
        "clock",
        "core-dumps",
    ] {
        assert!(verdicts.contains(&(well, "ok")), "{well}: {json:#}");
    }
    for seen in [
        "disk",
        "clock-sync",
        "bus",
        "kernel",
        "ptrace-scope",
        "callers",
    ] {
        assert!(
            verdicts.iter().any(|(check, _)| *check == seen),
            "{seen}: {json:#}"
        );
    }

    let mut text = patient
        .daemon
        .ctl_for_people(&["doctor", "--config", &patient.config()]);
    let text = String::from_utf8(text.output().unwrap().stdout).unwrap();
    assert!(text.contains("ok    mlskeyd "), "{text}");
    assert!(
        text.lines().last().unwrap().contains(" 0 failed, "),
        "{text}"
    );
    assert_eq!(text.lines().count(), verdicts.len() + 1, "{text}");
}

#[test]
fn what_is_wrong_is_told_with_what_to_do() {
    let mut patient = Patient::new(&Options::default());
    let state = patient.daemon.state();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    let (code, verdict, text) = patient.found("state-directory");
    assert_eq!((code, verdict.as_str()), (Some(1), "fail"));
    assert!(
        text.contains("has mode 0755") && text.contains("chmod 0700"),
        "{text}"
    );
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();

    let key = patient.daemon.store_key();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let (code, verdict, text) = patient.found("store-key");
    assert_eq!((code, verdict.as_str()), (Some(1), "fail"));
    assert!(text.contains("chmod 0600"), "{text}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let socket = patient.daemon.socket();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let (code, verdict, _) = patient.found("socket");
    assert_eq!((code, verdict.as_str()), (Some(0), "warn"));

    // Beside the state, without its key.
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let (_, verdict, text) = patient.found("store-key");
    assert!(
        verdict == "fail" && text.contains("put its copy back"),
        "{text}"
    );
    patient.daemon.stop();
    let (_, verdict, text) = patient.found("daemon");
    assert!(
        verdict == "fail" && text.contains("mlskeyd is not there"),
        "{text}"
    );
    assert_eq!(patient.found("devices").1, "skip");
    patient.daemon.restart(&Options::default());
    let (code, verdict, text) = patient.found("registry");
    assert_eq!((code, verdict.as_str()), (Some(1), "fail"), "{text}");
    assert!(text.contains("read-only"), "{text}");
    fs::write(&key, kept).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    patient.daemon.stop();

    let log = state.join("audit.log");
    let mut bytes = fs::read(&log).unwrap();
    bytes[60] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let (code, verdict, text) = patient.found("audit-log");
    assert_eq!((code, verdict.as_str()), (Some(1), "fail"));
    assert!(
        text.contains("the chain is broken at byte 32, after entry 0"),
        "{text}"
    );
}

#[test]
fn what_the_configuration_names_has_to_be_there() {
    let patient = Patient::new(&Options::default());
    let path = patient.stage.path("other.toml");
    let config = path.display().to_string();
    let found = |text: &str| {
        let state = patient.daemon.state().display().to_string();
        let socket = patient.daemon.socket().display().to_string();
        let text = format!("state_dir = {state:?}\nsocket = {socket:?}\n{text}");
        fs::write(&path, text).unwrap();
        let output = patient.look(&config);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = json["findings"].as_array().unwrap();
        let said = |it: &Value| {
            let field = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
            format!(
                "{} {}: {} — {}",
                field("verdict"),
                field("check"),
                field("what"),
                field("do")
            )
        };
        let lines: Vec<String> = findings.iter().map(said).collect();
        lines.join("\n")
    };
    let token = "[[devices]]\nname = \"hsm\"\nkind = \"pkcs11\"\nmodule = \"/nonexistent/module.so\"\ntoken = \"x\"\n";
    let text = found(token);
    assert!(
        text.contains("fail pkcs11: module /nonexistent/module.so of hsm is not there"),
        "{text}"
    );
    let chip = "[[devices]]\nname = \"tpm\"\nkind = \"tpm2\"\ntcti = \"device:/nonexistent\"\n";
    let text = found(chip);
    assert!(
        text.contains("fail tpm: /nonexistent of tpm is not there"),
        "{text}"
    );
    let text = found(&chip.replace("/nonexistent", "/etc/passwd"));
    assert!(
        text.contains("fail tpm: /etc/passwd of tpm is no device"),
        "{text}"
    );
    let text = found(&chip.replace("/nonexistent", "/dev/null"));
    assert!(
        text.contains("ok tpm: /dev/null of tpm may be used"),
        "{text}"
    );
    let text = found("[dbus]\nbus = \"unix:path=/nonexistent\"\n");
    assert!(
        text.contains("fail bus: the bus does not answer at /nonexistent"),
        "{text}"
    );
    let socket = patient.daemon.socket().display().to_string();
    let text = found(&format!("[dbus]\nbus = \"unix:path={socket}\"\n"));
    assert!(
        text.contains("fail bus: mlskeyd does not answer on the bus at"),
        "{text}"
    );
    let text = found("[policy]\nlocal_dir = \"/nonexistent\"\n");
    assert!(text.contains("ok policies: "), "{text}");
    let policies = patient.stage.path("policies");
    fs::create_dir(&policies).unwrap();
    fs::write(policies.join("90.cedar"), "forbid(").unwrap();
    let text = found(&format!(
        "[policy]\nlocal_dir = {:?}\n",
        policies.display().to_string()
    ));
    assert!(
        text.contains("fail policies: the policies are refused"),
        "{text}"
    );
    assert!(text.contains("mlskeyctl policy check"), "{text}");
    let text = found("nonsense = 1\n");
    assert!(
        text.contains("fail configuration: ") && text.contains("other.toml:3:1"),
        "{text}"
    );
    assert!(text.contains("skip state-directory: "), "{text}");
}

#[test]
fn a_yubikey_needs_pcscd() {
    let options = Options {
        extra: "[[devices]]\nname = \"card\"\nkind = \"yubikey\"\n".to_owned(),
        pcscd: Some("/nonexistent/pcscd".into()),
        ..Options::default()
    };
    let patient = Patient::new(&options);
    let (code, verdict, text) = patient.found("pcscd");
    // Whoever runs the tests may look into the daemon's environment only as root.
    if rustix::process::geteuid().is_root() {
        assert_eq!((code, verdict.as_str()), (Some(1), "fail"));
        assert!(
            text.contains("nobody listens at /nonexistent/pcscd"),
            "{text}"
        );
        assert!(text.contains("pcscd.socket"), "{text}");
    }
    patient.found("pcscd-access");
}

/// Another user.
const STRANGER: u32 = 65_533;

#[test]
fn whoever_is_not_root_sees_less_and_leaves_nothing_on_record() {
    if !rustix::process::geteuid().is_root() {
        // As root of a user namespace, where there are several users.
        let test = "doctor::whoever_is_not_root_sees_less_and_leaves_nothing_on_record";
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--map-auto"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let patient = Patient::new(&Options::default());
    let open = fs::Permissions::from_mode(0o755);
    for path in ["", "daemon"] {
        fs::set_permissions(patient.stage.path(path), open.clone()).unwrap();
    }
    let before = patient.daemon.ctl(&["status"]).unwrap()["audit_sequence"].clone();
    let copy = patient.stage.path("mlskeyctl");
    fs::copy(&patient.stage.programs().ctl, &copy).unwrap();
    fs::set_permissions(&copy, open).unwrap();
    let mut command = Command::new(copy);
    command.current_dir("/").gid(STRANGER).uid(STRANGER);
    command.arg("--socket").arg(patient.daemon.socket());
    command.args(["--json", "doctor", "--config", &patient.config()]);
    let output = command.output().unwrap();
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    assert_eq!(
        (&json["good"], output.status.code()),
        (&true.into(), Some(0)),
        "{json:#}"
    );
    let findings = json["findings"].as_array().unwrap();
    let verdict = |check: &str| {
        let mut of_it = findings.iter().filter(|it| it["check"] == check);
        of_it.next().unwrap()["verdict"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(verdict("daemon"), "ok");
    for hidden in [
        "registry",
        "audit-log",
        "devices",
        "certificates",
        "process",
    ] {
        assert_eq!(verdict(hidden), "skip", "{hidden}: {json:#}");
    }
    assert_eq!(
        patient.daemon.ctl(&["status"]).unwrap()["audit_sequence"],
        before
    );
}
