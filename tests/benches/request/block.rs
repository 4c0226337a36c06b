//! A block of work: some hands do the same thing again and again, for a time.
//! The processes that do it, and how they are told.

use std::io::BufRead;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use mlskeyd_tests::rig::{Process, Stage};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// Sign with a key of the token.
    Sign,
    /// Open with a key of the token.
    Open,
    /// Sign with the software device.
    SignInSoftware,
    /// Sign with a key of the TPM.
    SignInTpm,
    /// Ask whether the daemon is there.
    Status,
}

impl What {
    const NAMES: [(&str, Self); 5] = [
        ("sign", Self::Sign),
        ("open", Self::Open),
        ("sign-in-software", Self::SignInSoftware),
        ("sign-in-tpm", Self::SignInTpm),
        ("status", Self::Status),
    ];

    fn name(self) -> &'static str {
        let mut names = Self::NAMES.iter();
        names.find(|(_, what)| *what == self).expect("a name").0
    }

    fn named(name: &str) -> Self {
        let mut names = Self::NAMES.iter();
        names.find(|(known, _)| *known == name).expect("known").1
    }
}

/// What came of a block.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// The median time of one, in microseconds.
    pub p50: f64,
    /// How many a second, all hands together.
    pub rate: f64,
    /// What the slowest hand did, over the mean.
    pub slowest: f64,
}

/// One who does it.
pub trait Hand: Send {
    /// Once.
    fn work(&mut self, what: What);
}

/// A process that does blocks of work.
pub struct Worker(Process);

impl Worker {
    /// Starts this very program in another role.
    pub fn start(stage: &Stage, role: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--as").arg(role);
        prepare(&mut command);
        Self(Process::start(
            role,
            command,
            &stage.path(format!("{role}.log")),
        ))
    }

    /// Has a block done.
    pub fn block(&mut self, what: What, hands: usize, time: Duration) -> Done {
        let order = format!("{} {hands} {}\n", what.name(), time.as_millis());
        assert!(self.0.write(order.as_bytes()), "{}", self.0.log());
        let line = self.0.line().unwrap_or_else(|| panic!("{}", self.0.log()));
        let numbers: Vec<f64> = line
            .split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect();
        let [p50, rate, slowest] = numbers[..] else {
            panic!("an answer of three numbers: {line}");
        };
        Done { p50, rate, slowest }
    }
}

/// Does the blocks that standard input orders, until it ends.
pub fn serve<H: Hand>(make: impl Fn() -> H) {
    let mut hands: Vec<H> = Vec::new();
    for order in std::io::stdin().lock().lines() {
        let order = order.expect("an order");
        let mut words = order.split(' ');
        let mut word = || words.next().expect("an order of three words");
        let what = What::named(word());
        let count: usize = word().parse().expect("a number");
        let time = Duration::from_millis(word().parse().expect("a time"));
        while hands.len() < count {
            hands.push(make());
        }
        let done = run(&mut hands[..count], what, time);
        println!("{} {} {}", done.p50, done.rate, done.slowest);
    }
}

fn run<H: Hand>(hands: &mut [H], what: What, time: Duration) -> Done {
    let all = Barrier::new(hands.len());
    let each: Vec<(Vec<Duration>, Duration)> = std::thread::scope(|scope| {
        let started: Vec<_> = hands
            .iter_mut()
            .map(|hand| {
                let all = &all;
                scope.spawn(move || {
                    // Once before: it connects, and wakes what sleeps.
                    hand.work(what);
                    all.wait();
                    let begun = Instant::now();
                    let mut times = Vec::new();
                    let mut before = Duration::ZERO;
                    while before < time {
                        hand.work(what);
                        let after = begun.elapsed();
                        times.push(after - before);
                        before = after;
                    }
                    (times, before)
                })
            })
            .collect();
        let joined = started.into_iter().map(|hand| hand.join());
        joined.map(|times| times.expect("a hand")).collect()
    });
    let rates: Vec<f64> = each
        .iter()
        .map(|(times, elapsed)| times.len() as f64 / elapsed.as_secs_f64())
        .collect();
    let rate: f64 = rates.iter().sum();
    let slowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let times = each.into_iter().flat_map(|(times, _)| times);
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e6).collect();
    Done {
        p50: mlskeyd_tests::numbers::median(&mut times),
        rate,
        slowest: slowest * hands.len() as f64 / rate,
    }
}
