//! Many at both doors at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlskeyd_protocol::client::{Client, ClientConfig, Doors};
use mlskeyd_tests::member::{Member, Seat, client};
use mlskeyd_tests::rig::section_without_rates;

use crate::scene::Scene;

/// Clients at each door.
const EACH: usize = 64;

/// Signatures of all of them together.
const ALL: usize = 2 * EACH * 60;

#[test]
fn many_at_both_doors_have_fair_shares() {
    let rates = tempfile::tempdir().unwrap();
    let scene = Scene::with(&section_without_rates(rates.path()));
    let seat = {
        let client = client(&scene.daemon.socket());
        let member = Member::new(&client, "alice", "software");
        Seat::take(&member, &client)
    };
    let at = |number: usize| match number % 2 {
        0 => client(&scene.daemon.socket()),
        _ => {
            let doors = Doors::bus(scene.bus.address().as_str());
            Client::new(ClientConfig::through(doors, "crowd"))
        }
    };
    let (start, done) = (Barrier::new(2 * EACH), AtomicUsize::new(0));
    let shares: Vec<usize> = std::thread::scope(|scope| {
        let clients = (0..2 * EACH).map(|number| {
            let (at, start, done, seat) = (&at, &start, &done, &seat);
            scope.spawn(move || {
                let client = at(number);
                // Each has come in, and is as far as the others.
                seat.speak(&client);
                start.wait();
                let mut share = 0;
                while done.fetch_add(1, Ordering::Relaxed) < ALL {
                    seat.speak(&client);
                    share += 1;
                }
                share
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let sum: usize = shares.iter().sum();
    assert_eq!(sum, ALL);
    let of_door = |door: usize| shares.iter().skip(door).step_by(2).sum::<usize>();
    let (socket, bus) = (of_door(0), of_door(1));
    let (mean, least) = (sum / shares.len(), shares.iter().min().unwrap());
    println!("socket {socket}, bus {bus}; mean {mean}, least {least}");
    assert!(least * 2 >= mean, "{shares:?}");
    assert!(
        socket * 10 >= sum * 4 && bus * 10 >= sum * 4,
        "{socket} and {bus}"
    );
}
