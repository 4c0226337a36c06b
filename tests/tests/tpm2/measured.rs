//! Keys that are bound to what the machine has measured.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mlskeyd::config::Tcti;
use mlskeyd::devices::tpm2::Tpm2Device;
use mlskeyd::devices::{
    Algorithm, Approve as _, DeviceError, DeviceState, Kem, PeerPublic, StoredKey, Tier,
};
use mlskeyd_tests::rig::{Recovery, Tap};

use super::bench::{Bench, KINDS, make, state, use_key};
use super::bystander::Bystander;

/// One that no program changes, but the firmware.
const PCR: u8 = 7;

/// Of another one, which the system changes while it runs.
const BUSY_PCR: u32 = 10;

const CC_SIGN: [u8; 4] = [0, 0, 1, 0x5d];
const CC_ECDH_ZGEN: [u8; 4] = [0, 0, 1, 0x54];
const CC_UNSEAL: [u8; 4] = [0, 0, 1, 0x5e];

struct Scene {
    bench: Bench,
    recovery: Recovery,
}

impl Scene {
    fn new() -> Self {
        Self::bound_to(&[PCR, 16])
    }

    fn bound_to(pcrs: &[u8]) -> Self {
        let mut bench = Bench::new();
        let recovery = Recovery::new(&bench.stage, "recovery");
        bench.config.measured = Some(recovery.binding(pcrs));
        Self { bench, recovery }
    }

    /// A key of each kind, from this number on.
    fn keys(device: &mut Tpm2Device, first: u8) -> Vec<StoredKey> {
        let numbered = (first..).zip(KINDS);
        let made = numbered.map(|(number, kind)| make(device, number, kind).unwrap());
        made.collect()
    }

    /// What the recovery key has to sign now, in a file of this name.
    fn request(&self, device: &mut Tpm2Device, name: &str) -> PathBuf {
        let path = self.bench.stage.path(name);
        fs::write(&path, device.measurements().unwrap().to_sign).unwrap();
        path
    }

    fn approve(&self, device: &mut Tpm2Device) {
        let request = self.request(device, "request");
        let signature = fs::read(self.recovery.sign(&request)).unwrap();
        assert!(!device.measurements().unwrap().approved);
        assert!(device.approve(&signature).unwrap().approved);
        assert!(device.measurements().unwrap().approved);
    }

    /// The device, after something else was measured.
    fn after_update(&self, device: Tpm2Device, what: u8) -> Tpm2Device {
        drop(device);
        assert_eq!(self.bench.tpm.loaded(), [""; 0]);
        self.bench.tpm.measure(PCR, what);
        self.bench.reopen()
    }
}

/// As the daemon writes its own files.
fn write_private(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    set_mode(path, 0o600);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn work(device: &mut Tpm2Device, keys: &[StoredKey]) {
    // Back and forth, so that one takes the other's room.
    for key in keys.iter().chain(keys.iter().rev()) {
        use_key(device, key).unwrap();
    }
}

fn are_refused(device: &mut Tpm2Device, keys: &[StoredKey]) {
    for key in keys {
        let refused = use_key(device, key).unwrap_err();
        assert!(
            matches!(refused, DeviceError::OtherMeasurements { .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains("(PCR 7, 16)"), "{refused}");
        assert!(refused.advice().contains("mlskeyctl devices approve"));
        assert_eq!(state(device).0, DeviceState::Ready);
    }
}

#[test]
fn keys_work_with_their_measurements_and_with_approved_ones() {
    let mut scene = Scene::new();
    let mut device = scene.bench.first();
    let old = Scene::keys(&mut device, 1);
    work(&mut device, &old);

    let mut device = scene.after_update(device, 1);
    are_refused(&mut device, &old);
    // New ones are bound to what is there now.
    let new = Scene::keys(&mut device, 11);
    work(&mut device, &new);
    are_refused(&mut device, &old);
    scene.approve(&mut device);
    work(&mut device, &old);
    work(&mut device, &new);

    // Each connection has the TPM verify anew.
    drop(device);
    let mut device = scene.bench.reopen();
    work(&mut device, &old);
    work(&mut device, &new);

    // The registers begin at zero: as the old keys were made.
    scene.bench.tpm.kill();
    scene.bench.tpm.start();
    work(&mut device, &old);
    are_refused(&mut device, &new);

    // The same firmware as before, with the approval of then.
    let mut device = scene.after_update(device, 1);
    work(&mut device, &old);
    work(&mut device, &new);
    // And another one.
    let mut device = scene.after_update(device, 2);
    are_refused(&mut device, &old);
    are_refused(&mut device, &new);
    scene.approve(&mut device);
    work(&mut device, &old);
    work(&mut device, &new);

    // It is the approval that lets them work.
    drop(device);
    let approvals = scene.bench.directory.join("approvals");
    let kept = fs::read(&approvals).unwrap();
    fs::remove_file(&approvals).unwrap();
    let mut device = scene.bench.reopen();
    are_refused(&mut device, &old);
    drop(device);
    let mut changed = kept.clone();
    *changed.last_mut().unwrap() ^= 1;
    write_private(&approvals, &changed);
    let mut device = scene.bench.reopen();
    are_refused(&mut device, &old);
    drop(device);
    write_private(&approvals, &kept);
    let mut device = scene.bench.reopen();
    work(&mut device, &old);
    drop(device);
    assert_eq!(scene.bench.tpm.loaded(), [""; 0]);
}

#[test]
fn keys_keep_what_they_were_made_with() {
    let mut scene = Scene::new();
    let bound = scene.bench.config.measured.take();
    let mut device = scene.bench.first();
    let free = Scene::keys(&mut device, 1);
    let set_up = device.measurements().unwrap_err();
    assert!(
        matches!(set_up, DeviceError::NotApproved { .. }),
        "{set_up}"
    );
    drop(device);
    scene.bench.config.measured = bound;
    let mut device = scene.bench.reopen();
    let keys = Scene::keys(&mut device, 11);
    let mut device = scene.after_update(device, 1);
    work(&mut device, &free);
    are_refused(&mut device, &keys);
    scene.approve(&mut device);
    work(&mut device, &keys);
    drop(device);

    // Neither is lost with the settings, nor with the file of the key.
    scene.bench.config.measured = None;
    let mut device = scene.bench.reopen();
    work(&mut device, &keys);
    work(&mut device, &free);
    drop(device);
    scene.bench.config.measured = Some(scene.recovery.binding(&[PCR, 16]));
    let pem = fs::read(scene.recovery.public()).unwrap();
    for unfit in [None, Some(b"no key".as_slice()), Some(&pem[..60])] {
        fs::remove_file(scene.recovery.public()).unwrap();
        if let Some(unfit) = unfit {
            fs::write(scene.recovery.public(), unfit).unwrap();
        }
        let mut device = scene.bench.reopen();
        work(&mut device, &keys);
        let refused = make(&mut device, 21, KINDS[0]).unwrap_err();
        assert!(refused.to_string().contains("recovery.pem"), "{refused}");
        assert_eq!(state(&device).0, DeviceState::Ready);
        fs::write(scene.recovery.public(), &pem).unwrap();
        set_mode(scene.recovery.public(), 0o644);
        make(&mut device, 22, KINDS[0]).unwrap();
    }
    // Whoever can write it could approve.
    set_mode(scene.recovery.public(), 0o664);
    let refused = make(&mut scene.bench.reopen(), 23, KINDS[0]).unwrap_err();
    assert!(
        refused.to_string().contains("nobody else can write"),
        "{refused}"
    );
}

#[test]
fn nothing_else_approves() {
    let scene = Scene::new();
    let mut device = scene.bench.first();
    let keys = Scene::keys(&mut device, 1);
    let before = scene.request(&mut device, "before");
    let before = fs::read(scene.recovery.sign(&before)).unwrap();
    let other_tpm = Scene::new();
    let other_device = other_tpm.bench.first();

    let mut device = scene.after_update(device, 1);
    let mut other_device = other_tpm.after_update(other_device, 1);
    let request = scene.request(&mut device, "request");
    let other_request = scene.request(&mut other_device, "of another TPM");
    let [own, others] = [&request, &other_request].map(|path| fs::read(path).unwrap());
    assert_eq!(own[..32], others[..32], "the same measurements");
    assert_ne!(own[32..], others[32..], "of another TPM");
    let stranger = Recovery::new(&scene.bench.stage, "stranger");
    let right = fs::read(scene.recovery.sign(&request)).unwrap();
    let mut spoilt = right.clone();
    *spoilt.last_mut().unwrap() ^= 1;
    let by_stranger = fs::read(stranger.sign(&request)).unwrap();
    let for_other = fs::read(scene.recovery.sign(&other_request)).unwrap();
    for (what, signature) in [
        ("nothing", [].as_slice()),
        ("no signature", b"signature"),
        ("a longer one", &[right.as_slice(), &[0]].concat()),
        ("a spoilt one", &spoilt),
        ("another key's", &by_stranger),
        ("of the measurements before", &before),
        ("of another TPM", &for_other),
    ] {
        let refused = device.approve(signature).unwrap_err();
        assert!(
            matches!(refused, DeviceError::NotApproved { .. }),
            "{what}: {refused}"
        );
    }
    assert!(!scene.bench.directory.join("approvals").exists());
    are_refused(&mut device, &keys);
    device.approve(&right).unwrap();
    work(&mut device, &keys);
    assert_eq!(state(&device).0, DeviceState::Ready);
    drop(device);

    // Nor does the file of another device, which opens, since the store key and the
    // name are the same: with the same measurements and recovery key.
    let mut other = other_tpm.bench;
    other.config.measured = scene.bench.config.measured.clone();
    drop(other_device);
    other.tpm.kill();
    other.tpm.start();
    let mut device = other.reopen();
    let keys = Scene::keys(&mut device, 1);
    drop(device);
    other.tpm.measure(PCR, 1);
    let approvals = |bench: &Bench| bench.directory.join("approvals");
    fs::copy(approvals(&scene.bench), approvals(&other)).unwrap();
    let mut device = other.reopen();
    assert!(!device.measurements().unwrap().approved);
    are_refused(&mut device, &keys);
    let request = other.stage.path("request");
    fs::write(&request, device.measurements().unwrap().to_sign).unwrap();
    let signature = fs::read(scene.recovery.sign(&request)).unwrap();
    device.approve(&signature).unwrap();
    work(&mut device, &keys);
}

#[test]
fn an_authorisation_value_alone_serves_for_nothing() {
    let scene = Scene::new();
    let mut device = scene.bench.first();
    for (number, kind) in [(1, KINDS[0]), (2, KINDS[2])] {
        let key = make(&mut device, number, kind).unwrap();
        use_key(&mut device, &key).unwrap();
        let mut revealed = device.reveal(&key).unwrap();
        revealed.policy = None;
        drop(device);
        let mut bystander = Bystander::over(&scene.bench.tpm.tcti());
        let refused = match kind {
            (Algorithm::Signature(_), Tier::Hardware) => bystander.sign(&revealed),
            _ => bystander.unseal(&revealed).map(|_| ()),
        };
        drop(bystander);
        // TPM_RC_AUTH_UNAVAILABLE
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.contains("authValue or authPolicy is not available"),
            "{refused}"
        );
        device = scene.bench.reopen();
    }
}

/// The digests that are computed here are those that the TPM's own tools compute.
#[test]
fn what_is_approved_is_what_others_compute() {
    let (scene, registers) = (Scene::new(), "sha256:7,16");
    scene.bench.tpm.measure(PCR, 5);
    let mut device = scene.bench.first();
    let measured = device.measurements().unwrap();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    use_key(&mut device, &key).unwrap();
    let public = device.reveal(&key).unwrap().public;
    drop(device);
    let tpm = &scene.bench.tpm;
    let read = |name: &str| fs::read(tpm.state().join(name)).unwrap();
    tpm.tool(&["pcrread", registers, "-o", "values"]);
    let values: Vec<u8> = measured
        .registers
        .iter()
        .flat_map(|(_, value)| *value)
        .collect();
    assert_eq!(read("values"), values);

    let digest = |steps: &[&[&str]]| {
        tpm.tool(&["startauthsession", "-S", "s.ctx"]);
        for step in steps {
            tpm.tool(&[&step[..1], &["-S", "s.ctx", "-L", "digest"], &step[1..]].concat());
        }
        tpm.tool(&["flushcontext", "s.ctx"]);
        read("digest")
    };
    let by_tools = digest(&[&["policypcr", "-l", registers, "-f", "values"]]);
    assert_eq!(by_tools, measured.to_sign[..32]);

    // And those of all ways together.
    let (_, reference) = measured.to_sign.split_at(32);
    fs::write(tpm.state().join("reference"), reference).unwrap();
    fs::write(tpm.state().join("approved"), &measured.to_sign[..32]).unwrap();
    let public_key = scene.recovery.public().to_str().unwrap();
    tpm.tool(&[
        "loadexternal",
        "-C",
        "o",
        "-G",
        "ecc256:ecdsa-sha256",
        "-u",
        public_key,
        "-a",
        "userwithauth|sign",
        "-c",
        "recovery.ctx",
        "-n",
        "name",
    ]);
    tpm.tool(&["flushcontext", "-t"]);
    let keep = |name: &str, digest: Vec<u8>| fs::write(tpm.state().join(name), digest).unwrap();
    keep(
        "one",
        digest(&[
            &["policypcr", "-l", registers, "-f", "values"],
            &["policyauthvalue"],
        ]),
    );
    let authorize = [
        "policyauthorize",
        "-i",
        "approved",
        "-q",
        "reference",
        "-n",
        "name",
    ];
    keep("two", digest(&[&authorize, &["policyauthvalue"]]));
    let certify = ["policycommandcode", "TPM2_CC_Certify"];
    keep("three", digest(&[&certify, &["policyauthvalue"]]));
    let together = digest(&[&["policyor", "-l", "sha256:one,two,three"]]);
    assert!(
        public.windows(32).any(|window| window == together),
        "the policy of the key is {}",
        hex::encode(together)
    );
}

/// A TPM tells, and its tools take, eight at most at once.
#[test]
fn keys_may_be_bound_to_many_registers() {
    let many = [0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 14, 23];
    let mut scene = Scene::bound_to(&many);
    scene.bench.tpm.measure(23, 5);
    let mut device = scene.bench.first();
    let keys = Scene::keys(&mut device, 1);
    work(&mut device, &keys);
    let told = device.measurements().unwrap().registers;
    let numbers: Vec<_> = told.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, many);
    let mut device = scene.after_update(device, 1);
    for key in &keys {
        let refused = use_key(&mut device, key).unwrap_err();
        assert!(
            refused.to_string().contains("8, 9, 11, 14, 23)"),
            "{refused}"
        );
    }
    scene.approve(&mut device);
    work(&mut device, &keys);
    drop(device);

    // What was never there at one time is not what a key is bound to.
    let tap = Tap::before(&scene.bench.tpm);
    scene.bench.config.tcti = Tcti::parse(&tap.tcti()).unwrap();
    let mut device = scene.bench.reopen();
    let second_half = [0, 0x0b, 3, 0, 0x4a, 0x80];
    tap.measure_before(&second_half, PCR.into(), 1);
    let refused = make(&mut device, 11, KINDS[0]).unwrap_err();
    assert!(
        refused.to_string().contains("does not stay as it is"),
        "{refused}"
    );
    let key = make(&mut device, 12, KINDS[0]).unwrap();
    use_key(&mut device, &key).unwrap();
}

#[test]
fn what_is_measured_meanwhile_stops_a_use_before_it_begins() {
    let mut scene = Scene::new();
    let tap = Tap::before(&scene.bench.tpm);
    scene.bench.config.tcti = Tcti::parse(&tap.tcti()).unwrap();
    let mut device = scene.bench.first();
    let keys = Scene::keys(&mut device, 1);
    work(&mut device, &keys);
    let codes = KINDS.map(|(algorithm, tier)| match (algorithm, tier) {
        (Algorithm::Signature(_), Tier::Hardware) => CC_SIGN,
        (Algorithm::Hpke(_), Tier::Hardware) => CC_ECDH_ZGEN,
        _ => CC_UNSEAL,
    });
    // More often than there is room in the TPM for what an approval loads.
    for update in 1..=4 {
        for (key, code) in keys.iter().zip(&codes) {
            // Into another register: it is done again.
            tap.measure_before(code, BUSY_PCR, 1);
            use_key(&mut device, key).unwrap();
            assert!(!tap.waits());
        }
        tap.measure_before(&CC_SIGN, PCR.into(), update);
        are_refused(&mut device, &keys);
        assert!(!tap.waits());
        scene.approve(&mut device);
        work(&mut device, &keys);
    }
}

#[test]
fn nobody_on_the_way_to_the_tpm_reads_what_a_bound_key_is_used_for() {
    let mut scene = Scene::new();
    let tap = Tap::before(&scene.bench.tpm);
    scene.bench.config.tcti = Tcti::parse(&tap.tcti()).unwrap();
    let mut device = scene.bench.first();
    let key = make(
        &mut device,
        1,
        (Algorithm::Hpke(Kem::DhKemP256), KINDS[1].1),
    )
    .unwrap();
    let secret = p256::SecretKey::from_slice(&[9; 32]).unwrap();
    let point =
        p256::elliptic_curve::sec1::ToEncodedPoint::to_encoded_point(&secret.public_key(), false);
    let peer = PeerPublic::parse(Kem::DhKemP256, point.as_bytes()).unwrap();
    let agree = |device: &mut Tpm2Device| {
        let agreement = mlskeyd::devices::Device::agreement(device).unwrap();
        agreement.agree(&key, &peer).map(drop)
    };
    agree(&mut device).unwrap();
    let theirs = p256::PublicKey::from_sec1_bytes(&key.public).unwrap();
    let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), theirs.as_affine());
    let auth = device.reveal(&key).unwrap().auth;
    assert!(tap.saw(point.x().unwrap()), "it hears the TPM");
    assert!(!tap.saw(shared.raw_secret_bytes()));
    assert!(!tap.saw(&auth));
}
