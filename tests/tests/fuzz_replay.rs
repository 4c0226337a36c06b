//! The fuzz target `parse` without a fuzzer: what must hold for any bytes, for the corpus that fuzzing left
//! (`docs/fuzzing.md`), and for a fixed number of random changes to each of its inputs.

#[path = "../../fuzz/check/mod.rs"]
mod check;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Changed inputs for each input of the corpus.
const CHANGES: usize = 4;

fn corpus() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/parse");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let inputs: Vec<_> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    assert!(inputs.len() > 500, "a corpus of {}", inputs.len());
    inputs
}

#[test]
fn the_corpus_holds() {
    for input in corpus() {
        check::check(&input);
    }
}

#[test]
fn changes_to_the_corpus_hold() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let corpus = corpus();
    for input in &corpus {
        for _ in 0..CHANGES {
            let other = &corpus[rng.random_range(0..corpus.len())];
            let changed = changed(input, other, &mut rng);
            let checked = catch_unwind(AssertUnwindSafe(|| check::check(&changed)));
            if let Err(panic) = checked {
                println!("the input is {}", hex::encode(changed));
                resume_unwind(panic);
            }
        }
    }
}

/// One or a few changes of the kinds that fuzzers make.
fn changed(input: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=out.len());
        let end = rng.random_range(at..=out.len().min(at + 8));
        match rng.random_range(0..5) {
            0 => out.insert(at, rng.random()),
            1 => drop(out.drain(at..end)),
            2 => {
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            3 => {
                let from = rng.random_range(0..=other.len());
                let to = rng.random_range(from..=other.len().min(from + 64));
                out.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                if let Some(byte) = out.get_mut(at) {
                    *byte = rng.random();
                }
            }
        }
    }
    out
}
