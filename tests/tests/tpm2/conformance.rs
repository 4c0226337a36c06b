//! What every device keeps, kept by a TPM.

use mlskeyd::devices::{Device as _, Start, conformance};

use super::bench::{Bench, KINDS};

#[test]
fn swtpm_conforms() {
    let bench = Bench::new();
    let info = bench.open(Start::CreateIfAbsent).info();
    for (algorithm, tier) in KINDS {
        assert_eq!(info.tiers(algorithm), [tier], "{algorithm}");
    }
    conformance::run(&|| Box::new(bench.reopen()));
    assert_eq!(bench.tpm.loaded(), [""; 0], "nothing of ours is left");
}
