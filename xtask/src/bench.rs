//! `cargo xtask bench`: what requests and keys cost, as ratios within one run.

use crate::cargo;
use crate::steps::Steps;

/// All benchmarks, one of them where the kernel lets processes run anywhere, and on one core:
/// that decides most. `docs/performance.md` says what their tables mean.
pub(crate) fn run() -> Result<(), String> {
    let bench = |benches: &[&str], after: &[&str]| {
        cargo(&[&["bench", "-p", "mlskeyd-tests"], benches, after].concat())
    };
    let (request, registry) = (["--bench", "request"], ["--bench", "registry"]);
    let mut steps = Steps::default();
    steps.command("build", bench(&[request, registry].concat(), &["--no-run"]));
    steps.command("requests", bench(&request, &[]));
    steps.command(
        "requests, on one core",
        bench(&request, &["--", "--pinned"]),
    );
    steps.command("keys", bench(&registry, &[]));
    let decide = ["bench", "-p", "mlskeyd-policies", "--bench", "decide"];
    steps.command("decisions", cargo(&decide));
    steps.finish()
}
