//! `cargo xtask test`: everything that must hold before a change goes in.

use crate::steps::Steps;
use crate::{cargo, demo, kryoptic, setup, ykman};

/// OpenMLS's draft features. They change OpenMLS's traits for everything that is built with
/// them, so they are checked by themselves and not together with the workspace.
const DRAFTS: &str =
    "draft-ietf-mls-pq-ciphersuites,extensions-draft,targeted-messages-draft,virtual-clients-draft";

/// Random cases for each property test with `--full`; proptest's own default is 256.
const FULL_PROPTEST_CASES: &str = "8192";

/// Runs all checks and tests, fails at the first step that fails, and ends with a table.
///
/// No step changes RUSTFLAGS, the profile or the features of another, so that all of them
/// share what is built.
pub(crate) fn run(full: bool) -> Result<(), String> {
    let features: &[&str] = if full {
        &["--features", "mlskeyd-tests/full"]
    } else {
        &[]
    };
    let with = |before: &[&str], after: &[&str]| {
        let mut command = cargo(&[before, features, after].concat());
        command.env(ykman::VARIABLE, ykman::program());
        if full {
            command.env("PROPTEST_CASES", FULL_PROPTEST_CASES);
            command.env(kryoptic::VARIABLE, kryoptic::module());
        }
        command
    };
    let mut steps = Steps::default();

    steps.command("formatting", cargo(&["fmt", "--all", "--check"]));
    steps.command(
        "clippy",
        with(
            &["clippy", "--workspace", "--all-targets"],
            &["--", "-D", "warnings"],
        ),
    );
    steps.command(
        "clippy, draft features",
        cargo(&[
            "clippy",
            "-p",
            "mlskeyd-provider",
            "--features",
            DRAFTS,
            // OpenMLS lacks methods that the tests use where there are virtual clients.
            "--lib",
            "--examples",
            "--",
            "-D",
            "warnings",
        ]),
    );
    steps.command(
        "clippy, without TPMs",
        cargo(&[
            "clippy",
            "-p",
            "mlskeyd",
            "--no-default-features",
            "--",
            "-D",
            "warnings",
        ]),
    );
    steps.run("install ykman", ykman::install);
    let mut documentation = cargo(&["doc", "--workspace", "--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    steps.command("documentation", documentation);

    if full {
        steps.command("build Kryoptic", kryoptic::build());
        steps.run("load Kryoptic", kryoptic::loads);
    }
    steps.command(
        "build programs and examples",
        with(&["build", "--workspace", "--bins", "--examples"], &[]),
    );
    if setup::answers("nextest") {
        let profile = if full { "full" } else { "default" };
        let run = [
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--profile",
            profile,
        ];
        steps.command(
            "build tests",
            with(&["nextest", "run", "--workspace", "--no-run"], &[]),
        );
        steps.nextest("tests", with(&run, &[]));
    } else {
        let kinds = [
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--examples",
        ];
        steps.command("build tests", with(&kinds, &["--no-run"]));
        steps.command("tests", with(&kinds, &["--no-fail-fast"]));
    }
    steps.command(
        "documentation tests",
        with(&["test", "--workspace", "--doc"], &[]),
    );
    let socket = demo::Door::Socket;
    steps.run("demo", || demo::run(demo::Device::Software, socket));
    steps.run("demo on a bus", || {
        demo::run(demo::Device::Software, demo::Door::Dbus)
    });
    steps.run("demo on a token", || {
        demo::run(demo::Device::Pkcs11, socket)
    });
    steps.run("demo on a TPM", || demo::run(demo::Device::Tpm2, socket));
    steps.run("demo on a YubiKey", || {
        demo::run(demo::Device::YubiKey, socket)
    });
    steps.finish()
}
