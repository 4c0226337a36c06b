//! A TPM that loses its power in the middle of each kind of work, while several
//! clients use it.
//!
//! Somebody on the way to the TPM stops a command before the TPM hears of it, or
//! when the TPM has obeyed and nobody knows yet. Then the TPM is killed: so it is
//! the middle of that very command.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use mlskeyd::attest::tpm::attribute;
use mlskeyd::config::{Tcti, Tpm2Config};
use mlskeyd::devices::{Device as _, Start};
use mlskeyd_protocol::client::{AdminClient, Call, CallError, Client, ClientConfig};
use mlskeyd_protocol::v1::*;
use mlskeyd_tests::forge::labelled;
use mlskeyd_tests::member::{Member, client, keep, let_go, message};
use mlskeyd_tests::programs;
use mlskeyd_tests::registry_keys::stored_keys;
use mlskeyd_tests::rig::{
    Caught, Daemon, Maker, Options, Stage, Stop, Swtpm, Tap, code, section_without_rates,
};
use mlskeyd_tests::suite::{SUITE_1, SUITE_2, Suite, sealed, verifies};
use sha2::{Digest as _, Sha256};
use tss_esapi::constants::CommandCode;

use super::bench::{self, Bench, KINDS, generations, make, state, use_key};
use super::lockout::Holder;
use super::pin::{PIN, counted};

/// One client in each.
const SUITES: [Suite; 4] = [SUITE_1, SUITE_2, SUITE_1, SUITE_2];

/// The KeyPackages of a client, the oldest of which makes room for the next one.
const KEPT: usize = 6;

/// What the TPM is at when it loses its power.
struct Moment {
    name: &'static str,
    command: CommandCode,
    /// Bytes that tell the command from others of its code.
    telling: Vec<u8>,
    /// Does it come only when the TPM is connected again?
    returning: bool,
}

impl Moment {
    fn is_of(&self) -> impl Fn(&[u8]) -> bool + Send + 'static {
        let (wanted, telling) = (self.command, self.telling.clone());
        move |command| {
            let tells = |window: &[u8]| window == telling;
            code(command) == Some(wanted)
                && (telling.is_empty() || command.windows(telling.len()).any(tells))
        }
    }
}

fn moments(holder: &Holder) -> [Moment; 15] {
    let work = |name, command, telling: &[u8]| Moment {
        name,
        command,
        telling: telling.to_vec(),
        returning: false,
    };
    let returning = |name, command, telling: &[u8]| Moment {
        returning: true,
        ..work(name, command, telling)
    };
    use CommandCode::*;
    [
        work("making a signature key", Create, &template(ECC, SIGN)),
        work("making an HPKE key", Create, &template(ECC, DECRYPT)),
        work("sealing a key", Create, &template(KEYED_HASH, 0)),
        work("loading a key", Load, &[]),
        work("making room", FlushContext, &[]),
        work("signing", Sign, &[]),
        work(
            "signing with a key that has a PIN",
            Sign,
            &Sha256::digest(holder.content()),
        ),
        work("trying a PIN", PolicySecret, &[]),
        work("unsealing", Unseal, &[]),
        work("agreeing", EcdhZGen, &[]),
        work("destroying a generation", NvWrite, &[]),
        work("certifying", Certify, &[]),
        // Under the owner's hierarchy.
        returning("making the storage key", CreatePrimary, &[0x40, 0, 0, 1]),
        returning("beginning a session", StartAuthSession, &[]),
        // 40 bytes, from the first one on.
        returning("reading the root", NvRead, &[0, 40, 0, 0]),
    ]
}

const ECC: [u8; 2] = [0, 0x23];
const KEYED_HASH: [u8; 2] = [0, 0x08];
const SIGN: u32 = attribute::SENSITIVE_DATA_ORIGIN | attribute::SIGN;
const DECRYPT: u32 = attribute::SENSITIVE_DATA_ORIGIN | attribute::DECRYPT;

/// How the public area of what is to be made begins (TPM 2.0 Library, Part 2,
/// 12.2.4): what it is, the hash of its Name, its attributes.
fn template(kind: [u8; 2], more: u32) -> Vec<u8> {
    let attributes = attribute::FIXED_TPM
        | attribute::FIXED_PARENT
        | attribute::USER_WITH_AUTH
        | attribute::NO_DA
        | more;
    [&kind[..], &[0, 0x0b], &attributes.to_be_bytes()].concat()
}

struct Scene {
    admin: AdminClient,
    daemon: Daemon,
    tap: Tap,
    tpm: Swtpm,
    _stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        // So that its keys can be certified.
        let maker = Maker::new(&stage, "maker");
        let tpm = Swtpm::made_by(&maker, &stage, "tpm");
        // Or it refuses keys with a PIN, after a few losses of power.
        let setup = [
            "dictionarylockout",
            "--setup-parameters",
            "--max-tries=1000",
            "--recovery-time=100000",
            "--lockout-recovery-time=100000",
        ];
        tpm.tool(&setup);
        let tap = Tap::before(&tpm);
        let at_once = ["grace", "orphan_grace", "storage_horizon"];
        let mut lifetimes = Vec::from(at_once.map(|name| (name, "0s".to_owned())));
        // Generations change all the time.
        lifetimes.push(("generation", "1s".to_owned()));
        let options = Options {
            extra: Swtpm::device_at("tpm", &tap.tcti()) + &section_without_rates(&stage.path("")),
            lifetimes,
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        Self {
            admin: AdminClient::new(ClientConfig::new(daemon.socket(), "killed")),
            daemon,
            tap,
            tpm,
            _stage: stage,
        }
    }

    /// Stops the TPM in the middle of a command, which the clients bring about.
    fn kill_in(&mut self, moment: &Moment, stop: Stop) -> Caught {
        let snare = self.tap.snare(stop, moment.is_of());
        if moment.returning {
            self.tpm.kill();
            self.tpm.start();
        }
        let caught = snare.wait();
        self.tpm.kill();
        caught
    }

    fn await_state(&self, wanted: DeviceState) {
        loop {
            let devices = self.admin.devices(&Call::default()).unwrap();
            let tpm = devices.iter().find(|device| device.name == "tpm").unwrap();
            if tpm.state == wanted {
                return;
            }
            assert_ne!(tpm.state, DeviceState::Failed, "{:?}", tpm.detail);
            std::thread::yield_now();
        }
    }

    /// All keys that are not destroyed.
    fn alive(&self) -> Vec<KeyId> {
        let query = KeyQuery {
            after: None,
            destroyed: false,
        };
        let keys = self.admin.keys(query, &Call::default()).unwrap();
        assert!(keys.len() < 1000, "one page");
        keys.iter().map(|key| key.key.id).collect()
    }
}

/// One that works while the TPM comes and goes.
trait Lives {
    fn work(&mut self, turn: usize);

    /// All that was acknowledged is as it was acknowledged.
    fn check(&mut self);
}

/// One that gives its PIN again and again, and signs.
struct Unlocker {
    holder: Holder,
    is_unlocked: bool,
}

impl Unlocker {
    fn unlock(&mut self) -> Result<(), CallError> {
        if !self.is_unlocked {
            self.holder.unlock()?;
            self.is_unlocked = true;
        }
        Ok(())
    }
}

impl Lives for Unlocker {
    fn work(&mut self, turn: usize) {
        if turn.is_multiple_of(4) {
            self.holder.lock();
            self.is_unlocked = false;
        }
        let done = self.unlock().and_then(|()| self.holder.sign());
        if let Err(error) = done {
            expect_absence(&error);
        }
    }

    fn check(&mut self) {
        // Whose PIN was taken needs to give it no more, whatever happened since.
        back_again(|| self.unlock());
        back_again(|| self.holder.sign());
    }
}

/// A client that does all that there is to do, again and again, and remembers what
/// was acknowledged.
struct Resident {
    suite: Suite,
    client: Client,
    admin: AdminClient,
    member: Member,
    kept: VecDeque<[GeneratedHpke; 2]>,
    /// What must not do anything any more.
    ended: Vec<KeyId>,
    released: Vec<GeneratedHpke>,
    /// What was done, and what was not because there was no TPM.
    done: usize,
    failed: usize,
}

impl Resident {
    fn new(daemon: &Daemon, name: &str, suite: Suite) -> Self {
        let client = client(&daemon.socket());
        Self {
            suite,
            member: Member::of_suite(&client, suite, name, "tpm").unwrap(),
            client,
            admin: AdminClient::new(ClientConfig::new(daemon.socket(), "killed")),
            kept: VecDeque::new(),
            ended: Vec::new(),
            released: Vec::new(),
            done: 0,
            failed: 0,
        }
    }

    fn name(&self) -> &str {
        &self.member.identity.name
    }

    fn owner() -> Owner {
        Owner {
            uid: rustix::process::geteuid().as_raw(),
            app: "default".to_owned(),
        }
    }

    /// Gets another signature key.
    fn rotate(&mut self) -> Result<(), CallError> {
        let request = RotateIdentity {
            owner: Self::owner(),
            name: self.name().to_owned(),
            placement: Placement {
                device: Some("tpm".to_owned()),
                tier: None,
            },
            grace: Some(0),
            pin: None,
            drop_pin: false,
        };
        let identity = self.admin.rotate_identity(request, &Call::default())?;
        self.ended.push(self.member.identity.key);
        self.member.identity = identity;
        Ok(())
    }

    /// Has all destroyed that is due: whatever the TPM says, nobody is told that it
    /// failed, since it is destroyed for all here, and waits for the TPM.
    fn sweep(&self) -> Result<(), CallError> {
        self.admin.sweep_all(&Call::default(), |_| {}).map(|_| ())
    }

    fn attest(&self) -> Result<(), CallError> {
        let request = AttestIdentity {
            owner: Self::owner(),
            name: self.name().to_owned(),
            nonce: Bytes(vec![7; 32]),
        };
        let evidence = self.admin.attest_identity(request, &Call::default());
        evidence.map(|_| ())
    }

    fn make_key_package(&mut self) -> Result<(), CallError> {
        let keys = self.member.try_key_package(&self.client)?;
        keep(&self.client, self.name(), &keys);
        self.kept.push_back(keys);
        if self.kept.len() > KEPT {
            let oldest = self.kept.pop_front().unwrap();
            let_go(&self.client, self.name(), &oldest);
            self.released.extend(oldest);
        }
        Ok(())
    }

    fn sign(&self) -> Result<(), CallError> {
        let content = message(self.suite);
        let signature = self.member.try_sign(&self.client, &content)?;
        let public = &self.member.identity.public_key;
        assert!(verifies(self.suite, public, &content, &signature));
        Ok(())
    }

    fn open_all(&self) -> Result<(), CallError> {
        self.kept.iter().try_for_each(|[init, _]| self.open(init))
    }

    fn open(&self, init: &GeneratedHpke) -> Result<(), CallError> {
        let info = labelled("Welcome", b"the sealed GroupInfo");
        let welcome = sealed(self.suite, init, &info, &self.suite.group_secrets());
        let opened = self.client.open(welcome, &Call::default())?;
        assert_eq!(opened.expose(), self.suite.group_secrets());
        Ok(())
    }
}

impl Lives for Resident {
    fn work(&mut self, turn: usize) {
        let done = match turn % 8 {
            0 => self.rotate(),
            1 if self.suite.number == SUITE_2.number => self.attest(),
            2 | 6 => self.make_key_package(),
            3 | 7 => self.open_all(),
            4 => self.sweep(),
            _ => self.sign(),
        };
        match done {
            Ok(()) => self.done += 1,
            Err(error) => {
                expect_absence(&error);
                self.failed += 1;
            }
        }
    }

    fn check(&mut self) {
        let identities = self.client.identities(&Call::default()).unwrap();
        let own = identities.iter().find(|it| it.name == self.name()).unwrap();
        assert_eq!(*own, self.member.identity);
        back_again(|| self.sign());
        back_again(|| self.open_all());
        for key in &self.ended {
            let mut ended = self.member.clone();
            ended.identity.key = *key;
            let content = message(self.suite);
            let refused = ended.try_sign(&self.client, &content).unwrap_err();
            assert_eq!(code_of(&refused), Some(FailureCode::Destroyed), "{refused}");
        }
    }
}

/// Until the TPM is back: nobody but the daemon brings it back.
fn back_again(mut work: impl FnMut() -> Result<(), CallError>) {
    while let Err(error) = work() {
        expect_absence(&error);
        std::thread::yield_now();
    }
}

fn code_of(error: &CallError) -> Option<FailureCode> {
    match error {
        CallError::Failure(failure) => Some(failure.code),
        _ => None,
    }
}

/// Nothing else is wrong than that there is no TPM.
fn expect_absence(error: &CallError) {
    let is_lost = error.to_string().contains("was lost while it was asked");
    match code_of(error) {
        Some(FailureCode::DeviceAbsent) => {}
        Some(FailureCode::DeviceFailed) if is_lost => {}
        _ => panic!("{error}"),
    }
}

/// Ends all residents, also if something fails.
struct AtEnd<'a>(&'a AtomicUsize);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(usize::MAX, Ordering::SeqCst);
    }
}

/// Works, checks when that is wanted, and says so.
fn live(resident: &mut dyn Lives, checks: &AtomicUsize, checked: &mpsc::Sender<()>) {
    let mut last = 0;
    for turn in 0.. {
        let wanted = checks.load(Ordering::SeqCst);
        if wanted != last {
            resident.check();
            // Nobody hears the last one.
            let _ = checked.send(());
            last = wanted;
        }
        if wanted == usize::MAX {
            return;
        }
        resident.work(turn);
    }
}

#[test]
fn a_tpm_that_is_killed_in_the_middle_of_anything_costs_nothing() {
    let mut scene = Scene::new();
    let residents = SUITES.iter().enumerate();
    let residents =
        residents.map(|(n, suite)| Resident::new(&scene.daemon, &format!("resident {n}"), *suite));
    let mut residents: Vec<_> = residents.collect();
    let mut unlocker = Unlocker {
        holder: Holder::new(&scene.daemon, "holder", SUITE_2, PIN),
        is_unlocked: false,
    };
    unlocker.check();
    let moments = moments(&unlocker.holder);
    // Grows when all have to check what they have.
    let checks = AtomicUsize::new(0);
    let mut kills = 0;
    // So often the key with a PIN was used between a start of the TPM and its end.
    let mut after_use = 0;
    std::thread::scope(|scope| {
        let _end = AtEnd(&checks);
        let residents = residents
            .iter_mut()
            .map(|resident| resident as &mut (dyn Lives + Send));
        let residents = residents.chain([&mut unlocker as _]).map(|resident| {
            let (checked, check) = mpsc::channel();
            let checks = &checks;
            scope.spawn(move || live(resident, checks, &checked));
            check
        });
        let residents: Vec<_> = residents.collect();
        for (number, moment) in moments.iter().enumerate() {
            for (stop, is_back_soon) in stops(number) {
                println!("{}: {stop:?}, back soon: {is_back_soon}", moment.name);
                let caught = scene.kill_in(moment, stop);
                if is_back_soon {
                    // What is repeated succeeds, and perhaps nobody notices.
                    scene.tpm.start();
                    drop(caught);
                } else {
                    drop(caught);
                    scene.await_state(DeviceState::Absent);
                    scene.tpm.start();
                }
                scene.await_state(DeviceState::Ready);
                kills += 1 + usize::from(moment.returning);
                after_use += 1;
                checks.fetch_add(1, Ordering::SeqCst);
                for resident in &residents {
                    resident.recv().expect("nobody fails");
                }
            }
        }
    });
    let sum = |count: fn(&Resident) -> usize| residents.iter().map(count).sum::<usize>();
    println!(
        "killed {kills} times: {} works were done, {} were not",
        sum(|it| it.done),
        sum(|it| it.failed)
    );
    let counted = nothing_else_is_left(&mut scene, residents, unlocker.holder);
    // No wrong value: each loss of power after the key with a PIN was used, once.
    assert_eq!(counted, after_use);
}

/// Of all steps of a set-up those that change the TPM, or try what it allows.
#[test]
fn a_tpm_that_is_killed_while_it_is_set_up_is_set_up_anew() {
    use CommandCode::*;
    for command in [CreatePrimary, Create, NvDefineSpace, NvWrite] {
        for stop in [Stop::Unheard, Stop::Unanswered] {
            let mut bench = Bench::new();
            let tap = Tap::before(&bench.tpm);
            let config = Tpm2Config {
                tcti: Tcti::parse(&tap.tcti()).unwrap(),
                ..bench.tpm.config()
            };
            let snare = tap.snare(stop, move |bytes| code(bytes) == Some(command));
            let directory = bench.directory.clone();
            let opened =
                std::thread::spawn(move || bench::open(&config, &directory, Start::CreateIfAbsent));
            let caught = snare.wait();
            bench.tpm.kill();
            bench.tpm.start();
            drop(caught);
            let mut device = opened.join().unwrap();
            let (found, reason) = state(&device);
            assert_eq!(
                found,
                DeviceState::Absent,
                "{command:?}, {stop:?}: {reason}"
            );
            device.probe();
            let (found, reason) = state(&device);
            assert_eq!(found, DeviceState::Ready, "{command:?}, {stop:?}: {reason}");
            let key = make(&mut device, 1, KINDS[0]).unwrap();
            drop(device);
            use_key(&mut bench.reopen(), &key).unwrap();
            assert_eq!(bench.tpm.indices().len(), 1, "{command:?}, {stop:?}");
            assert_eq!(bench.tpm.loaded(), [""; 0]);
        }
    }
}

/// Each moment is met before and after the TPM has obeyed; in a long run also
/// whether it is back at once or after the loss was noticed.
fn stops(number: usize) -> Vec<(Stop, bool)> {
    let soon = number.is_multiple_of(2);
    let mut stops = vec![(Stop::Unheard, soon), (Stop::Unanswered, !soon)];
    if cfg!(feature = "full") {
        stops.extend([(Stop::Unheard, !soon), (Stop::Unanswered, soon)]);
    }
    stops
}

/// What the TPM has counted.
fn nothing_else_is_left(scene: &mut Scene, residents: Vec<Resident>, holder: Holder) -> u32 {
    // What was released is destroyed, and what nobody was told of.
    let mut acknowledged = BTreeSet::from([holder.key()]);
    drop(holder);
    let mut released = Vec::new();
    for resident in residents {
        acknowledged.insert(resident.member.identity.key);
        acknowledged.extend(resident.kept.iter().flatten().map(|key| key.key));
        released.extend(resident.released.iter().map(|key| key.key));
        released.extend(resident.ended);
    }
    while scene.admin.status(&Call::default()).unwrap().connections > 1 {
        std::thread::yield_now();
    }
    let swept = scene.admin.sweep_all(&Call::default(), |_| {}).unwrap();
    assert_eq!((swept.waiting, swept.stuck), (0, 0));
    let alive = scene.alive();
    let different: BTreeSet<_> = alive.iter().copied().collect();
    assert_eq!(alive.len(), different.len(), "none is there twice");
    assert_eq!(different, acknowledged);
    assert!(released.iter().all(|key| !different.contains(key)));

    scene.daemon.stop();
    // The device has the secrets that these keys need, and no other.
    let needed = stored_keys(&scene.daemon).into_iter();
    let needed: BTreeSet<_> = needed.map(|key| *key.generation.as_bytes()).collect();
    let directory = scene.daemon.state().join("devices/tpm");
    assert_eq!(generations(&directory), needed.len());
    assert_eq!(scene.tpm.loaded(), [""; 0]);
    // Beside those that the TPM's maker left.
    let indices = scene.tpm.indices().into_iter();
    let own = indices.filter(|index| !index.to_lowercase().starts_with("0x1c0"));
    assert_eq!(own.count(), 1);
    counted(&scene.tpm)
}
