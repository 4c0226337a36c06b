//! What a decision costs: `cargo bench -p mlskeyd-policies`.
//!
//! Two fixed sets of each size. `scoped`: each policy names a group of users in its scope, as
//! those of a company do, and 20 of them apply to the caller. `unscoped`: a third of them name
//! nobody, and apply to everybody.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use mlskeyd_policies::{Action, CallerFacts, ContextFacts, Facts, ResourceFacts, Set};

const ROUNDS: usize = 20_000;

fn policies(count: usize, is_unscoped: impl Fn(usize) -> bool) -> String {
    let mut text =
        String::from("@id(\"all\") @reason(\"x\") permit(principal, action, resource);\n");
    for number in 1..count {
        let principal = if is_unscoped(number) {
            "principal".to_owned()
        } else {
            format!("principal in Group::\"g{number}\"")
        };
        let _ = writeln!(
            text,
            "@id(\"p{number}\") @reason(\"x\") forbid({principal}, action in Action::\"SignMessage\", resource) when {{ context.guard.epochs_behind > {number} && context.epoch > {number} }};"
        );
    }
    text
}

fn measure(name: &str, count: usize, text: &str, groups: usize) {
    let set = Set::new([("bench.cedar", text)]).unwrap();
    let caller = Arc::new(CallerFacts {
        groups: (1..=groups).map(|number| format!("g{number}")).collect(),
        ..CallerFacts::default()
    });
    let resource = ResourceFacts {
        key: "00".to_owned(),
        device: "token".to_owned(),
        identity: Some("alice".to_owned()),
        ..ResourceFacts::default()
    };
    let mut context = ContextFacts {
        group: Some("00".to_owned()),
        ..ContextFacts::default()
    };
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        context.epoch = u64::try_from(round).unwrap();
        let facts = Facts {
            action: Action::SignApplicationMessage,
            caller: &caller,
            resource: &resource,
            context: &context,
        };
        let start = Instant::now();
        let answer = set.decide(&facts);
        times.push(start.elapsed());
        assert!(answer.is_permit);
    }
    times.sort();
    let micros = |part: usize| {
        let time = times.get(ROUNDS.div_ceil(100).saturating_mul(part));
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    };
    println!(
        "{name:9} {count:5} policies: p50 {:7.1} us, p99 {:7.1} us",
        micros(50),
        micros(99)
    );
}

fn main() {
    for count in [30, 300, 3000] {
        measure("scoped", count, &policies(count, |_| false), 19);
    }
    for count in [30, 300, 3000] {
        measure(
            "unscoped",
            count,
            &policies(count, |number| number % 3 == 0),
            0,
        );
    }
}
