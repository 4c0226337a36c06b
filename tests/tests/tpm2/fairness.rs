//! Many clients of one TPM: none has to wait for the others.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use mlskeyd_tests::member::{Member, Seat, client};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Stage, Swtpm, section_without_rates};

const CLIENTS: usize = 16;

#[cfg(feature = "full")]
const LENGTH: Duration = Duration::from_secs(10);
#[cfg(not(feature = "full"))]
const LENGTH: Duration = Duration::from_secs(2);

/// Each has a key of its own, which mostly has to be loaded: more than there is
/// room for in the TPM.
#[test]
fn each_of_many_clients_has_its_share() {
    let stage = Stage::new(programs!());
    let tpm = Swtpm::new(&stage);
    let options = Options {
        extra: tpm.device("tpm") + &section_without_rates(&stage.path("")),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let seats: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = client(&daemon.socket());
            let member = Member::new(&client, &format!("client {number}"), "tpm");
            (Seat::take(&member, &client), client)
        })
        .collect();
    let begin = Barrier::new(CLIENTS);
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let work = seats.iter().map(|(seat, client)| {
            scope.spawn(|| {
                begin.wait();
                let begun = Instant::now();
                let mut signatures = 0;
                while begun.elapsed() < LENGTH {
                    seat.speak(client);
                    signatures += 1;
                }
                signatures
            })
        });
        let work: Vec<_> = work.collect();
        work.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let share = counts.iter().sum::<usize>() / CLIENTS;
    println!("a fair share is {share}: {counts:?}");
    assert!(share > 0);
    for count in counts {
        assert!((share / 2..=share * 2).contains(&count), "{count}");
    }
}
