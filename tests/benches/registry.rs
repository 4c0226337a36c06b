//! What many keys cost: `cargo xtask bench`.
//!
//! Two daemons, each with a token of SoftHSM, one with 100 keys and one with
//! 100,000, are asked in turn. And what a start takes, and memory.

use std::time::Instant;

use mlskeyd_protocol::client::{Call, Client};
use mlskeyd_protocol::v1::Bytes;
use mlskeyd_tests::member::{Member, Seat, client};
use mlskeyd_tests::numbers::{Spread, median};
use mlskeyd_tests::planted_keys::plant;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, SoftHsm, Stage, section_without_rates};
use mlskeyd_tests::vitals::{Vitals, memory};

const FEW: usize = 100;
const MANY: usize = 100_000;

const ROUNDS: usize = 25;
/// Requests of one block.
const BLOCK: usize = 250;
const STARTS: usize = 7;

fn main() {
    let mut few = House::new(FEW);
    let mut many = House::new(MANY);

    println!("| | measured (the middle half) | of |");
    println!("|---|---|---|");
    let sign = compare(&mut few, &mut many, House::sign);
    row(
        "P-256 signature: p50 with 100,000 keys over 100",
        sign,
        2,
        "",
    );
    let look_up = compare(&mut few, &mut many, House::look_up);
    row("look-up of one of the keys: the same", look_up, 2, "");

    for (name, house) in [("100", &mut few), ("100,000", &mut many)] {
        let starts: Vec<f64> = (0..STARTS).map(|_| house.start_again()).collect();
        let start = format!("start with {name} keys, ms");
        row(&start, Spread::of(starts), 0, "until apps can connect");
        let at_rest = megabytes(Vitals::of(house.daemon.pid()).memory);
        house.use_all();
        let used = megabytes(Vitals::of(house.daemon.pid()).memory);
        let most = megabytes(memory(house.daemon.pid(), "VmHWM"));
        println!(
            "| resident memory with {name} keys, MB | {used:.1} | {at_rest:.1} at the start, {most:.1} at most |"
        );
    }
}

/// Asks both in turn: the ratio of their medians.
fn compare(few: &mut House, many: &mut House, mut ask: impl FnMut(&mut House)) -> Spread {
    let mut p50 = |house: &mut House| {
        let mut times: Vec<f64> = (0..BLOCK)
            .map(|_| {
                let begun = Instant::now();
                ask(house);
                begun.elapsed().as_secs_f64()
            })
            .collect();
        median(&mut times)
    };
    Spread::of((0..ROUNDS).map(|_| p50(many) / p50(few)))
}

fn row(name: &str, measured: Spread, decimals: usize, of: &str) {
    println!("| {name} | {measured:.decimals$} | {of} |");
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A daemon with so many keys.
struct House {
    daemon: Daemon,
    options: Options,
    client: Client,
    seat: Seat,
    planted: Vec<Bytes>,
    next: usize,
    _softhsm: SoftHsm,
    _stage: Stage,
}

impl House {
    fn new(keys: usize) -> Self {
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        softhsm.add_token("bench");
        let options = Options {
            extra: softhsm.device("hsm", "bench") + &section_without_rates(&stage.path("")),
            ..Options::default()
        };
        let mut daemon = Daemon::start(&stage, &options);
        let client = client(&daemon.socket());
        let member = Member::new(&client, "bench", "hsm");
        let seat = Seat::take(&member, &client);
        daemon.stop();
        let planted = plant(&daemon, keys);
        daemon.restart(&options);
        Self {
            daemon,
            options,
            client,
            seat,
            planted,
            next: 0,
            _softhsm: softhsm,
            _stage: stage,
        }
    }

    fn sign(&mut self) {
        self.seat.speak(&self.client);
    }

    fn look_up(&mut self) {
        self.next = (self.next + 1) % self.planted.len();
        let wanted = vec![self.planted[self.next].clone()];
        let found = self.client.look_up(wanted, &Call::default());
        assert!(found.expect("an answer")[0].is_some());
    }

    /// Stops and starts it; milliseconds until it serves.
    fn start_again(&mut self) -> f64 {
        self.daemon.stop();
        let begun = Instant::now();
        self.daemon.restart(&self.options);
        begun.elapsed().as_secs_f64() * 1e3
    }

    /// Looks at more keys than are remembered, and signs.
    fn use_all(&mut self) {
        for _ in 0..self.planted.len().min(20_000) {
            self.look_up();
        }
        for _ in 0..BLOCK {
            self.sign();
        }
    }
}
