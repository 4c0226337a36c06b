//! What a machine needs before anything can be built.

use std::process::{Command, Stdio};

/// Makes sure that the system packages for `what` (an argument of `setup.sh`) are there: lists what is
/// missing, and installs it with `yes` or after asking on a terminal.
///
/// The work is done by `xtask/setup.sh`, which has to run on machines that cannot link Rust yet.
pub(crate) fn packages(what: &str, yes: bool) -> Result<(), String> {
    let mut script = Command::new(crate::root().join("xtask/setup.sh"));
    script.arg(what);
    if yes {
        script.arg("--yes");
    }
    match script.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("system packages are missing: see above".to_owned()),
        Err(error) => Err(format!("cannot start xtask/setup.sh: {error}")),
    }
}

/// Makes sure that the toolchain has the components that `test` uses: adds them with `yes`, if
/// the toolchain is rustup's.
pub(crate) fn components(yes: bool) -> Result<(), String> {
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(subcommand, _)| !answers(subcommand))
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.args(["component", "add"]).args(&missing);
    if yes && add.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err(format!(
        "the Rust toolchain lacks components. Run: rustup component add {}",
        missing.join(" ")
    ))
}

/// Whether `cargo SUBCOMMAND` is installed.
pub(crate) fn answers(subcommand: &str) -> bool {
    crate::cargo(&[subcommand, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::stage::Stage;

    /// A machine with the given programs, each a shell script, and nothing else.
    struct Machine {
        stage: Stage,
    }

    impl Machine {
        fn with(programs: &[(&str, &str)]) -> Self {
            let stage = Stage::open("xtask-test").unwrap();
            for tool in ["sh", "sed", "env", "ln", "true"] {
                let found =
                    ["/usr/bin", "/bin"].map(|directory| PathBuf::from(directory).join(tool));
                let found = found.iter().find(|path| path.exists()).unwrap();
                symlink(found, stage.path(tool)).unwrap();
            }
            for (name, script) in programs {
                let path = stage.path(name);
                std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            }
            Self { stage }
        }

        /// One that has, beside these, all that the tests run, but no compiler.
        fn equipped(programs: &[(&str, &str)]) -> Self {
            let tools = TOOLS.map(|tool| (tool, FINE));
            Self::with(&[&tools, programs].concat())
        }

        /// Runs the script without a terminal: whether it succeeded, and what it printed.
        fn setup(&self, arguments: &[&str]) -> (bool, String) {
            let output = Command::new(crate::root().join("xtask/setup.sh"))
                .args(arguments)
                .env("PATH", self.stage.path(""))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(output.stdout.is_empty());
            (
                output.status.success(),
                String::from_utf8(output.stderr).unwrap(),
            )
        }
    }

    const FINE: &str = "exit 0";
    const TOOLS: [&str; 17] = [
        "git",
        "softhsm2-util",
        "pkcs11-tool",
        "pkg-config",
        "swtpm",
        "swtpm_localca",
        "tpm2",
        "openssl",
        "pcscd",
        "unshare",
        "ip",
        "yubico-piv-tool",
        "python3",
        "dbus-daemon",
        "bwrap",
        "xdg-dbus-proxy",
        "ssh-keygen",
    ];
    const ROOT: (&str, &str) = ("id", "echo 0");
    const USER: (&str, &str) = ("id", "echo 1000");
    /// A package manager that says what it is asked, and installs a compiler.
    const INSTALLS: &str = r#"echo "called: ${0##*/} $*"
case "$*" in *gcc*) ln -s true "$PATH/cc" ;; esac"#;

    #[test]
    fn nothing_is_installed_where_nothing_is_missing() {
        let machine = Machine::equipped(&[("cc", FINE), ROOT, ("apt-get", INSTALLS)]);
        assert_eq!(machine.setup(&["test", "--yes"]), (true, String::new()));
        assert_eq!(machine.setup(&["demo"]), (true, String::new()));
    }

    #[test]
    fn the_longer_tests_need_more() {
        let machine = Machine::equipped(&[("cc", FINE), ROOT, ("apt-get", INSTALLS)]);
        assert_eq!(machine.setup(&["test"]), (true, String::new()));
        let (done, said) = machine.setup(&["full"]);
        assert!(
            !done && said.contains(" make") && !said.contains("gcc"),
            "{said}"
        );
        assert!(
            said.contains("or: cargo xtask setup --yes --full\n"),
            "{said}"
        );
    }

    #[test]
    fn without_a_terminal_nothing_is_installed_unasked() {
        let machine = Machine::equipped(&[ROOT, ("apt-get", INSTALLS)]);
        let (done, said) = machine.setup(&["demo"]);
        assert!(!done && !said.contains("called"), "{said}");
        assert!(
            said.contains("apt-get install -y --no-install-recommends gcc libc6-dev"),
            "{said}"
        );
    }

    #[test]
    fn with_yes_the_lists_are_fetched_and_only_the_missing_is_installed() {
        let machine = Machine::equipped(&[ROOT, ("apt-get", INSTALLS)]);
        let (done, said) = machine.setup(&["test", "--yes"]);
        let calls: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("called"))
            .collect();
        let install = "called: apt-get install -y --no-install-recommends gcc libc6-dev";
        assert!(
            done && calls == ["called: apt-get update", install],
            "{said}"
        );
    }

    #[test]
    fn a_user_installs_through_sudo() {
        let sudo = ("sudo", r#"echo "as root: $*""#);
        let machine = Machine::equipped(&[USER, sudo, ("dnf", INSTALLS)]);
        let (_, said) = machine.setup(&["demo", "--yes"]);
        assert!(
            said.contains("as root: dnf install -y gcc glibc-devel\n"),
            "{said}"
        );
        let (done, said) = Machine::with(&[USER, ("dnf", INSTALLS)]).setup(&["demo", "--yes"]);
        assert!(!done && said.contains("Run this as root"), "{said}");
    }

    #[test]
    fn what_is_still_missing_afterwards_is_an_error() {
        let machine = Machine::with(&[("cc", FINE), ROOT, ("pacman", "exit 0")]);
        let (done, said) = machine.setup(&["test", "--yes"]);
        assert!(
            !done && said.contains("still missing") && said.contains("git"),
            "{said}"
        );
    }

    #[test]
    fn a_failing_package_manager_is_an_error() {
        let machine = Machine::with(&[ROOT, ("zypper", "exit 7")]);
        let (done, said) = machine.setup(&["demo", "--yes"]);
        assert!(!done && said.contains("package manager failed"), "{said}");
    }

    #[test]
    fn an_unknown_package_manager_is_told_what_is_needed() {
        let (done, said) = Machine::with(&[ROOT]).setup(&["demo", "--yes"]);
        assert!(
            !done && said.contains("C compiler") && said.contains("your system's means"),
            "{said}"
        );
    }
}
