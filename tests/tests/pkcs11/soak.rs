//! Very many requests of several clients: nothing is left of them, in the
//! daemon, in its helper, and on the token.

use mlskeyd::daemon::LOOKING_UP;
use mlskeyd_protocol::client::{AdminClient, Call, Client, ClientConfig};
use mlskeyd_tests::member::{Member, Seat, client};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, SoftHsm, Stage, section_without_rates};
use mlskeyd_tests::vitals::Vitals;
use p256::ecdsa::signature::Verifier as _;
use rustix::process::Pid;

/// Signatures and opens.
#[cfg(feature = "full")]
const REQUESTS: [usize; 2] = [100_000, 20_000];
#[cfg(not(feature = "full"))]
const REQUESTS: [usize; 2] = [1_000, 200];

/// By how much memory may grow from the half to the end, in bytes: what
/// allocators do not give back of what they had for a moment. With all requests
/// a leak of 36 bytes for each would be twice that.
#[cfg(feature = "full")]
const GROWTH: usize = 1 << 20;
#[cfg(not(feature = "full"))]
const GROWTH: usize = 4 << 20;

/// SoftHSM 2.6 does not give back some 240 bytes of each session object, and so
/// of each open, to whoever uses it, until the process ends.
const LOST_BY_SOFTHSM: usize = 300;

const CLIENTS: usize = 8;

/// The daemon's default.
const SESSIONS: usize = 4;

/// Of every so many signatures one is verified.
const VERIFIED: usize = 100;

struct Scene {
    seat: Seat,
    key: p256::ecdsa::VerifyingKey,
    admin: AdminClient,
    daemon: Daemon,
    helper: Pid,
    softhsm: SoftHsm,
    _stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        softhsm.add_token("mlskeyd");
        let options = Options {
            extra: softhsm.device("hsm", "mlskeyd") + &section_without_rates(&stage.path("")),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        let client = client(&daemon.socket());
        let member = Member::new(&client, "soak", "hsm");
        let public = &member.identity.public_key;
        let [helper] = daemon.children()[..] else {
            panic!("one token, one helper");
        };
        Self {
            seat: Seat::take(&member, &client),
            key: p256::ecdsa::VerifyingKey::from_sec1_bytes(public).unwrap(),
            admin: AdminClient::new(ClientConfig::new(daemon.socket(), "soak")),
            daemon,
            helper,
            softhsm,
            _stage: stage,
        }
    }

    fn clients(&self) -> Vec<Client> {
        (0..CLIENTS)
            .map(|_| client(&self.daemon.socket()))
            .collect()
    }

    /// So many requests, shared among the clients.
    fn work(&self, clients: &[Client], [signatures, opens]: [usize; 2]) {
        let own = |all: usize, n: usize| all / CLIENTS + usize::from(n < all % CLIENTS);
        std::thread::scope(|scope| {
            for (n, client) in clients.iter().enumerate() {
                let (signatures, opens) = (own(signatures, n), own(opens, n));
                scope.spawn(move || {
                    for done in 0..signatures.max(opens) {
                        if done < signatures {
                            self.sign(client, done % VERIFIED == 0);
                        }
                        if done < opens {
                            self.seat.open(client);
                        }
                    }
                });
            }
        });
    }

    fn sign(&self, client: &Client, verify: bool) {
        let signature = self.seat.speak(client);
        if verify {
            let signature = p256::ecdsa::Signature::from_der(&signature).unwrap();
            self.key.verify(self.seat.message(), &signature).unwrap();
        }
    }

    /// Of the daemon and its helper.
    fn vitals(&self) -> [Vitals; 2] {
        assert_eq!(self.daemon.children(), [self.helper], "it was not replaced");
        [self.daemon.pid(), self.helper].map(Vitals::of)
    }

    /// The same, once nobody but the one who asks is connected.
    fn vitals_alone(&self) -> [Vitals; 2] {
        loop {
            let status = self.admin.status(&Call::default()).unwrap();
            if status.connections == 1 {
                return self.vitals();
            }
        }
    }
}

fn show(when: &str, [daemon, helper]: [Vitals; 2]) {
    for (who, vitals) in [("daemon", daemon), ("helper", helper)] {
        println!(
            "{when:>8}: {who} {} descriptors, {} threads, {} kB",
            vitals.descriptors,
            vitals.threads,
            vitals.memory / 1024
        );
    }
}

#[test]
fn nothing_is_left_of_many_requests() {
    let scene = Scene::new();
    // All sessions that there will ever be: one thread of the helper for each.
    let sessions = |[_, helper]: [Vitals; 2]| helper.threads - 1;
    let clients = scene.clients();
    while sessions(scene.vitals()) < SESSIONS {
        scene.work(&clients, [CLIENTS, CLIENTS]);
    }
    drop(clients);
    let before = scene.vitals_alone();
    show("before", before);
    let objects = scene.softhsm.objects();

    let clients = scene.clients();
    let part = |percent: usize| REQUESTS.map(|all| all * percent / 100);
    scene.work(&clients, part(10));
    show("10 %", scene.vitals());
    scene.work(&clients, part(40));
    let half = scene.vitals();
    show("50 %", half);
    scene.work(&clients, part(50));
    let whole = scene.vitals();
    show("100 %", whole);
    drop(clients);
    let after = scene.vitals_alone();
    show("after", after);
    println!(
        "   token: {objects} objects before, {} after",
        scene.softhsm.objects()
    );

    let lost = [0, REQUESTS[1] / 2 * LOST_BY_SOFTHSM];
    for (n, who) in ["daemon", "helper"].into_iter().enumerate() {
        let growth = whole[n].memory.saturating_sub(half[n].memory);
        let most = GROWTH + lost[n];
        assert!(
            growth < most as u64,
            "the {who} has grown by {growth} bytes"
        );
    }
    assert_eq!(sessions(whole), SESSIONS);
    assert_eq!(
        after.map(|of| of.descriptors),
        before.map(|of| of.descriptors)
    );
    assert_eq!(sessions(after), sessions(before));
    // Those of the daemon that look names up come and go.
    let [threads, threads_before] = [after, before].map(|[daemon, _]| daemon.threads);
    assert!(
        threads <= threads_before + LOOKING_UP,
        "{threads}, and {threads_before} before"
    );
    assert_eq!(scene.softhsm.objects(), objects);
}
