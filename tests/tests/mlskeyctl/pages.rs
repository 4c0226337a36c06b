//! The manual pages and completions that packages install.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd_tests::programs;
use mlskeyd_tests::rig::Stage;

fn made(stage: &Stage, what: &str) -> PathBuf {
    let dir = stage.path(what);
    let mut pages = Command::new(env!("CARGO_BIN_EXE_test-pages"));
    let output = pages.arg(what).arg(&dir).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    dir
}

/// The names of the pages that there have to be: each command's.
fn names(command: &clap::Command, name: &str, names: &mut BTreeSet<String>) {
    names.insert(format!("{name}.1"));
    for below in command
        .get_subcommands()
        .filter(|it| it.get_name() != "help")
    {
        self::names(below, &format!("{name}-{}", below.get_name()), names);
    }
}

#[test]
fn each_command_has_a_manual_page() {
    let stage = Stage::new(programs!());
    let dir = made(&stage, "man");
    let mut wanted = BTreeSet::from(["mlskeyd.8".to_owned(), "mlskeyd.toml.5".to_owned()]);
    let command = mlskeyd::ctl::command();
    names(&command, "mlskeyctl", &mut wanted);
    assert!(wanted.contains("mlskeyctl-audit-follow.1") && wanted.contains("mlskeyctl-doctor.1"));
    let listed = fs::read_dir(&dir).unwrap();
    let there: BTreeSet<String> = listed
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, wanted);

    let top = fs::read_to_string(dir.join("mlskeyctl.1")).unwrap();
    for below in command.get_subcommands() {
        let page = format!("mlskeyctl\\-{}(1)", below.get_name());
        assert!(top.contains(&page), "{page}");
    }
    assert!(
        top.contains("8  audit: the chain of the log is broken"),
        "{top}"
    );
    let daemon = fs::read_to_string(dir.join("mlskeyd.8")).unwrap();
    for word in [
        "\\-\\-check\\-config",
        "MLSKEYD_LOG",
        "Exit codes:",
        "mlskeyd.toml(5)",
    ] {
        assert!(daemon.contains(word), "{word}");
    }
    let configuration = fs::read_to_string(dir.join("mlskeyd.toml.5")).unwrap();
    assert!(configuration.contains("\n[store_key]\n"), "{configuration}");

    let mut clean = 0;
    for name in &there {
        clean += u32::from(is_clean(&dir.join(name)));
    }
    println!("{clean} pages were read by man or mandoc");
}

/// Whether somebody who reads manual pages has nothing to say about it; `false`: nobody is there.
fn is_clean(page: &Path) -> bool {
    let page = page.display().to_string();
    let readers = [
        (
            "man",
            &["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", &page][..],
        ),
        ("mandoc", &["-Tlint", "-Wwarning", &page][..]),
    ];
    let mut read = false;
    for (reader, arguments) in readers {
        let Ok(output) = Command::new(reader).args(arguments).output() else {
            continue;
        };
        read = true;
        let said = [
            output.stderr,
            if reader == "mandoc" {
                output.stdout
            } else {
                Vec::new()
            },
        ];
        let said = String::from_utf8(said.concat()).unwrap();
        assert!(
            output.status.success() && said.is_empty(),
            "{reader} {page}: {said}"
        );
    }
    read
}

#[test]
fn shells_complete_the_commands() {
    let stage = Stage::new(programs!());
    let dir = made(&stage, "completions");
    for (name, word) in [
        ("mlskeyctl.bash", "follow"),
        ("_mlskeyctl", "follow"),
        ("mlskeyctl.fish", "follow"),
    ] {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        assert!(text.contains(word), "{name}");
    }
    let script = dir.join("mlskeyctl.bash").display().to_string();
    let run = |arguments: &[&str]| {
        let output = Command::new("bash").args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["-n", &script]);
    let completes = run(&[
        "--norc",
        "-c",
        "source \"$1\" && complete -p mlskeyctl",
        "x",
        &script,
    ]);
    assert!(completes.trim_end().ends_with(" mlskeyctl"), "{completes}");
    // As if somebody pressed the key.
    let press = "source \"$1\"; COMP_WORDS=(mlskeyctl audit fo); COMP_CWORD=2; \
                 _mlskeyctl mlskeyctl fo audit; echo \"${COMPREPLY[@]}\"";
    let found = run(&["--norc", "-c", press, "x", &script]);
    assert_eq!(found.trim(), "follow");
}
