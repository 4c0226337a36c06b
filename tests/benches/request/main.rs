//! What a request costs, as ratios within one run: `cargo xtask bench`.
//!
//! A daemon in a process of its own, with its helper and a token of SoftHSM, with
//! policy and audit on and durability as in service; its clients in another
//! process; and in a third one direct use of the same token, and of a TPM like the
//! daemon's, by separate code.
//! They work in turn, a block at a time, so that whatever else the machine does
//! meets all of them.
//!
//! With `--pinned` all of them share one core; without, the kernel decides, and
//! where it lets them run decides most.

mod block;
mod clients;
mod direct;
mod direct_tpm;

use std::path::Path;
use std::time::Duration;

use block::{Done, What, Worker};
use clients::Clients;
use direct::Token;
use mlskeyd_tests::numbers::Spread;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, SoftHsm, Stage, Swtpm, section_without_rates};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The token's label.
const TOKEN: &str = "bench";
/// The daemon's name for it.
const DEVICE: &str = "hsm";
/// The daemon's other device.
const SOFTWARE: &str = "software";
/// And its TPM.
const TPM: &str = "tpm";

/// Blocks of one client: many and short.
const ALONE: (usize, Duration) = (25, Duration::from_millis(100));
/// Blocks of many clients, which have to get going.
const TOGETHER: (usize, Duration) = (8, Duration::from_millis(400));
/// Threads of direct use. More do not scale.
const DIRECT_THREADS: [usize; 3] = [1, 2, 4];

fn main() {
    // Beside these there are cargo's own arguments, such as --bench.
    let arguments: Vec<String> = std::env::args().collect();
    let after = |word: &str| {
        let at = arguments.iter().position(|argument| argument == word)?;
        arguments.get(at + 1).map(String::as_str)
    };
    match after("--as") {
        Some("clients") => {
            let clients = Clients::new(Path::new(after("--socket").expect("a socket")));
            block::serve(|| clients.hand());
        }
        Some(_) => {
            let token = Token::open(after("--tpm").expect("a TPM"));
            block::serve(|| token.hand());
        }
        None => measure(arguments.iter().any(|argument| argument == "--pinned")),
    }
}

fn measure(pinned: bool) {
    if pinned {
        pin();
    }
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token(TOKEN);
    // One each: without a resource manager a TPM has room for one user's keys.
    let [tpm, direct_tpm] = ["tpm", "direct-tpm"].map(|name| Swtpm::named(&stage, name));
    let options = Options {
        extra: softhsm.device(DEVICE, TOKEN)
            + &tpm.device(TPM)
            + &section_without_rates(&stage.path("")),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let clients = Worker::start(&stage, "clients", |command| {
        command.arg("--socket").arg(daemon.socket());
    });
    let direct = Worker::start(&stage, "direct", |command| {
        command.envs(softhsm.environment());
        command.arg("--tpm").arg(direct_tpm.tcti());
    });
    let mut sides = Sides { clients, direct };

    let pins = if pinned { "one core" } else { "any core" };
    println!("| {pins} | measured (the middle half) | of |");
    println!("|---|---|---|");
    for (name, what) in [
        ("P-256 signature", What::Sign),
        ("open", What::Open),
        ("P-256 signature, software device", What::SignInSoftware),
        ("P-256 signature, TPM", What::SignInTpm),
    ] {
        sides.alone(name, what);
    }
    let status = (0..ALONE.0).map(|_| sides.clients.block(What::Status, 1, ALONE.1).p50);
    row("`status`: p50, µs", Spread::of(status), 0, "");
    for (name, what) in [("P-256 signatures", What::Sign), ("opens", What::Open)] {
        for clients in [16, 64] {
            sides.together(name, what, clients);
        }
    }
}

/// The daemon's clients, and direct use.
struct Sides {
    clients: Worker,
    direct: Worker,
}

impl Sides {
    /// One client, one thread.
    fn alone(&mut self, name: &str, what: What) {
        let (rounds, time) = ALONE;
        let blocks: Vec<(f64, f64)> = (0..rounds)
            .map(|_| {
                let served = self.clients.block(what, 1, time);
                (served.p50, self.direct.block(what, 1, time).p50)
            })
            .collect();
        let served = Spread::of(blocks.iter().map(|(served, _)| *served));
        let direct = Spread::of(blocks.iter().map(|(_, direct)| *direct));
        let times = format!("{:.0} µs, {:.0} µs", served.median, direct.median);
        let ratio = Spread::of(blocks.iter().map(|(served, direct)| served / direct));
        row(&format!("{name}: p50 over direct"), ratio, 2, &times);
        let rest = Spread::of(blocks.iter().map(|(served, direct)| served - direct));
        row(&format!("{name}: p50 less direct, µs"), rest, 0, "");
    }

    /// Many clients, and as many threads of direct use as serve it best.
    fn together(&mut self, name: &str, what: What, clients: usize) {
        let (rounds, time) = TOGETHER;
        let blocks: Vec<(Done, [f64; 3])> = (0..rounds)
            .map(|_| {
                let served = self.clients.block(what, clients, time);
                let direct = |threads| self.direct.block(what, threads, time).rate;
                (served, DIRECT_THREADS.map(direct))
            })
            .collect();
        let rate_of = |n: usize| Spread::of(blocks.iter().map(|(_, direct)| direct[n])).median;
        let threads = 0..DIRECT_THREADS.len();
        let best = threads.max_by(|a, b| rate_of(*a).total_cmp(&rate_of(*b)));
        let best = best.expect("there is one");
        let served = Spread::of(blocks.iter().map(|(served, _)| served.rate));
        let ratio = blocks
            .iter()
            .map(|(served, direct)| served.rate / direct[best]);
        let rates = format!(
            "{:.0}/s, {:.0}/s by {} threads",
            served.median,
            rate_of(best),
            DIRECT_THREADS[best]
        );
        let name = format!("{name}, {clients} clients");
        row(
            &format!("{name}: rate over direct"),
            Spread::of(ratio),
            2,
            &rates,
        );
        let slowest = Spread::of(blocks.iter().map(|(served, _)| served.slowest));
        row(&format!("{name}: slowest client over mean"), slowest, 2, "");
    }
}

fn row(name: &str, measured: Spread, decimals: usize, of: &str) {
    println!("| {name} | {measured:.decimals$} | {of} |");
}

/// This process, and all that it starts, on one core.
fn pin() {
    let allowed = sched_getaffinity(None).expect("the cores");
    let first = (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core));
    let mut one = CpuSet::new();
    one.set(first.expect("there is one"));
    sched_setaffinity(None, &one).expect("it may be pinned");
}
