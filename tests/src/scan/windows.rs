//! The search that knows no private key.
//!
//! A window of 32 bytes is slid over all writable memory, byte by byte. What
//! looks random is taken for a private key, in each [`Form`], and multiplied
//! out; if the result is one of the public keys, it was one.
//!
//! What looks random: at least [`MIN_DISTINCT`] different byte values, and no
//! run of more than [`MAX_ZEROS`] zeros. Of 32 random bytes fewer than one in
//! 10^7 do not (a test computes it), while pointers, text, hexadecimal and
//! numbers in decimal are left out.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::sync::LazyLock;
use std::thread;

use hkdf::Hkdf;
use p256::ProjectivePoint;
use p256::elliptic_curve::point::AffineCoordinates;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

use super::{Finding, Kind, Snapshot};

/// Length of all private keys that are searched for, in bytes.
const WINDOW: usize = 32;

/// Fewest different byte values in what looks random.
pub const MIN_DISTINCT: usize = 22;

/// Longest run of zeros in what looks random.
pub const MAX_ZEROS: usize = 3;

/// As what a window is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    /// An X25519 scalar, clamped or not; also the first half of an expanded
    /// Ed25519 seed, which is such a scalar.
    X25519,
    /// An Ed25519 seed.
    Ed25519Seed,
    /// A P-256 scalar, big endian.
    P256,
    /// A P-256 scalar, little endian.
    P256Reversed,
    /// What an X25519 key pair is derived from (RFC 9180, 7.1.3).
    X25519Ikm,
    /// What a P-256 key pair is derived from (RFC 9180, 7.1.3).
    P256Ikm,
}

impl Form {
    /// Its name in a [`Finding`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::X25519 => "X25519 scalar",
            Self::Ed25519Seed => "Ed25519 seed",
            Self::P256 => "P-256 scalar",
            Self::P256Reversed => "P-256 scalar, reversed",
            Self::X25519Ikm => "ikm of X25519",
            Self::P256Ikm => "ikm of P-256",
        }
    }
}

/// The public keys whose private keys are searched for, with what the test
/// calls them.
#[derive(Clone, Debug, Default)]
pub struct PublicKeys {
    /// By X25519 public key; an Ed25519 key as the X25519 key of its scalar.
    montgomery: HashMap<[u8; 32], String>,
    /// By Ed25519 public key.
    edwards: HashMap<[u8; 32], String>,
    /// By x coordinate: a key and its negative are equally bad.
    p256: HashMap<[u8; 32], String>,
}

impl PublicKeys {
    /// Adds an X25519 public key.
    pub fn add_x25519(&mut self, name: &str, key: [u8; 32]) {
        self.montgomery.insert(key, name.to_owned());
    }

    /// Adds an Ed25519 public key.
    pub fn add_ed25519(&mut self, name: &str, key: [u8; 32]) {
        let point = ed25519_dalek::VerifyingKey::from_bytes(&key).expect("an Ed25519 public key");
        self.montgomery
            .insert(point.to_montgomery().to_bytes(), name.to_owned());
        self.edwards.insert(key, name.to_owned());
    }

    /// Adds a P-256 public key, uncompressed (SEC1).
    pub fn add_p256(&mut self, name: &str, key: [u8; 65]) {
        let x = key[1..33].try_into().expect("32 bytes");
        self.p256.insert(x, name.to_owned());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        // Every Ed25519 key is in both.
        self.montgomery.len() + self.p256.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key that this private key belongs to, and as what.
    pub fn owner(&self, private: &[u8; WINDOW]) -> Option<(Form, &str)> {
        let curve25519 = || {
            [
                (Form::X25519, &self.montgomery, x25519(*private)),
                (Form::Ed25519Seed, &self.edwards, ed25519(private)),
                (
                    Form::X25519Ikm,
                    &self.montgomery,
                    x25519(derive(0x0020, "sk", &[], private)),
                ),
            ]
        };
        let p256 = || {
            let mut reversed = *private;
            reversed.reverse();
            let derived = derive(0x0010, "candidate", &[0], private);
            [
                (Form::P256, *private),
                (Form::P256Reversed, reversed),
                (Form::P256Ikm, derived),
            ]
        };
        let mut found = None;
        if !self.montgomery.is_empty() {
            for (form, keys, public) in curve25519() {
                found = found.or_else(|| keys.get(&public).map(|name| (form, name.as_str())));
            }
        }
        if !self.p256.is_empty() {
            for (form, scalar) in p256() {
                let name = self.p256.get(&p256_x(&scalar));
                found = found.or_else(|| name.map(|name| (form, name.as_str())));
            }
        }
        found
    }
}

/// What a search looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// The private keys that were found.
    pub findings: Vec<Finding>,
    /// How many bytes of writable memory there were.
    pub bytes: usize,
    /// How many different windows looked random, and were multiplied out.
    pub windows: usize,
}

/// Searches all writable memory of a snapshot for the private keys of these
/// public keys.
pub fn find(snapshot: &Snapshot, keys: &PublicKeys) -> Searched {
    let memory = || {
        snapshot
            .parts
            .iter()
            .filter(|part| part.kind == Kind::WritableMemory)
    };
    let mut seen = HashSet::new();
    let mut windows = Vec::new();
    for part in memory() {
        for (offset, window) in random_looking(&part.bytes) {
            if seen.insert(window) {
                windows.push((part, offset, window));
            }
        }
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let findings = thread::scope(|scope| {
        let share = windows.len().div_ceil(threads).max(1);
        let searches: Vec<_> = windows
            .chunks(share)
            .map(|share| {
                scope.spawn(move || {
                    let found = share.iter().filter_map(|(part, offset, window)| {
                        keys.owner(window).map(|(form, name)| Finding {
                            key: name.to_owned(),
                            form: form.name(),
                            writing: "bytes",
                            place: format!("{} + {offset:#x}", part.name),
                            in_memory: true,
                        })
                    });
                    found.collect::<Vec<_>>()
                })
            })
            .collect();
        let found = searches
            .into_iter()
            .map(|search| search.join().expect("no panic"));
        found.flatten().collect()
    });
    Searched {
        findings,
        bytes: snapshot.size(Kind::WritableMemory),
        windows: windows.len(),
    }
}

/// The windows of `bytes` that look random, with their offsets.
fn random_looking(bytes: &[u8]) -> impl Iterator<Item = (usize, [u8; WINDOW])> {
    let mut counts = [0_u8; 256];
    let mut distinct = 0;
    // Where the zeros that end here began, and where the last long run of
    // zeros did its harm to the end of.
    let mut zeros = 0;
    let mut spoilt_until = 0;
    bytes.iter().enumerate().filter_map(move |(at, byte)| {
        if let Some(left) = at.checked_sub(WINDOW) {
            let count = &mut counts[usize::from(bytes[left])];
            *count -= 1;
            distinct -= usize::from(*count == 0);
        }
        let count = &mut counts[usize::from(*byte)];
        distinct += usize::from(*count == 0);
        *count += 1;
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        if zeros > MAX_ZEROS {
            // The last window that holds the run's last four zeros.
            spoilt_until = at + WINDOW - MAX_ZEROS;
        }
        let start = (at + 1).checked_sub(WINDOW)?;
        let random = distinct >= MIN_DISTINCT && at >= spoilt_until;
        random.then(|| (start, bytes[start..=at].try_into().expect("a window")))
    })
}

fn x25519(private: [u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(private)).to_bytes()
}

fn ed25519(seed: &[u8; 32]) -> [u8; 32] {
    ed25519_dalek::SigningKey::from_bytes(seed)
        .verifying_key()
        .to_bytes()
}

/// The x coordinate of the P-256 public key; that of a scalar beyond the
/// group's order is that of its remainder.
fn p256_x(private: &[u8; 32]) -> [u8; 32] {
    let places = private.iter().zip(&*P256_TABLE);
    let point: ProjectivePoint = places
        .map(|(byte, multiples)| multiples[usize::from(*byte)])
        .sum();
    point.to_affine().x().into()
}

/// For each of the 32 places of a scalar's bytes, the most significant first,
/// the 256 multiples of the generator that a byte there stands for. The search
/// takes a fifth of the time with it.
static P256_TABLE: LazyLock<Vec<[ProjectivePoint; 256]>> = LazyLock::new(|| {
    let mut one = ProjectivePoint::GENERATOR;
    let mut table = Vec::new();
    for _ in 0..WINDOW {
        let mut next = ProjectivePoint::IDENTITY;
        table.push(std::array::from_fn(|_| {
            let multiple = next;
            next += one;
            multiple
        }));
        one = next;
    }
    table.reverse();
    table
});

/// DeriveKeyPair of RFC 9180, 7.1.3, up to the scalar.
fn derive(kem: u16, label: &str, info: &[u8], ikm: &[u8; 32]) -> [u8; 32] {
    let suite = [b"HPKE-v1KEM".as_slice(), &kem.to_be_bytes()].concat();
    let labeled_ikm = [&suite, b"dkp_prk".as_slice(), ikm].concat();
    let (_, prk) = Hkdf::<Sha256>::extract(None, &labeled_ikm);
    let labeled_info = [&[0, 32], suite.as_slice(), label.as_bytes(), info];
    let mut private = [0; 32];
    prk.expand_multi_info(&labeled_info, &mut private)
        .expect("32 bytes are few");
    private
}

#[cfg(test)]
mod tests {
    use openmls_traits::crypto::OpenMlsCrypto;
    use openmls_traits::types::{HpkeAeadType, HpkeConfig, HpkeKdfType, HpkeKemType};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn looks_random(window: &[u8]) -> bool {
        let distinct: HashSet<_> = window.iter().collect();
        let zeros = window
            .windows(MAX_ZEROS + 1)
            .any(|run| run.iter().all(|byte| *byte == 0));
        distinct.len() >= MIN_DISTINCT && !zeros
    }

    #[test]
    fn the_slide_gives_every_window_that_looks_random_and_no_other() {
        let seed = rand::random();
        eprintln!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; 20_000];
        random.fill(&mut bytes[..]);
        // Stretches of zeros and of text between, so that both edges are met.
        for _ in 0..400 {
            let length = random.random_range(1..40);
            let at = random.random_range(0..bytes.len() - length);
            let byte = if random.random() { 0 } else { b'a' };
            bytes[at..at + length].fill(byte);
        }
        let expected: Vec<usize> = bytes
            .windows(WINDOW)
            .enumerate()
            .filter_map(|(at, window)| looks_random(window).then_some(at))
            .collect();
        let found: Vec<_> = random_looking(&bytes).collect();
        assert!(
            expected.len() > 1_000 && expected.len() < 15_000,
            "{}",
            expected.len()
        );
        assert!(
            found
                .iter()
                .all(|(at, window)| bytes[*at..at + WINDOW] == *window)
        );
        assert_eq!(
            found.into_iter().map(|(at, _)| at).collect::<Vec<_>>(),
            expected
        );
    }

    /// The chance that random bytes are left out, computed: of the different
    /// values by their distribution (each byte is new with a chance of
    /// (256 - d)/256), of the zeros by the union over where a run may begin.
    #[test]
    fn hardly_any_random_key_is_left_out() {
        let mut chances = vec![0.0; WINDOW + 1];
        chances[0] = 1.0;
        for _ in 0..WINDOW {
            for distinct in (0..=WINDOW).rev() {
                let stays = chances[distinct] * distinct as f64 / 256.0;
                let grows = match distinct.checked_sub(1) {
                    Some(fewer) => chances[fewer] * (256 - fewer) as f64 / 256.0,
                    None => 0.0,
                };
                chances[distinct] = stays + grows;
            }
        }
        let total: f64 = chances.iter().sum();
        assert!((total - 1.0).abs() < 1e-9);
        let few: f64 = chances[..MIN_DISTINCT].iter().sum();
        let zeros = (WINDOW - MAX_ZEROS) as f64 / 256_f64.powi(MAX_ZEROS as i32 + 1);
        eprintln!("left out: {few:e} for few values, {zeros:e} for zeros");
        assert!(few + zeros < 1e-7);
    }

    #[test]
    fn pointers_and_text_are_left_out() {
        let pointers: Vec<u8> = (0..64_u64)
            .flat_map(|i| (0x5555_5678_0000 + i * 0x1230).to_le_bytes())
            .collect();
        assert_eq!(random_looking(&pointers).count(), 0);
        let hex = hex::encode(pointers);
        assert_eq!(random_looking(hex.as_bytes()).count(), 0);
    }

    #[test]
    fn the_table_multiplies_as_the_crate_does() {
        let mut scalars = vec![[0; 32], [1; 32], [0xFF; 32]];
        scalars[0][31] = 1;
        scalars.extend((0..20).map(|_| rand::random::<[u8; 32]>()));
        for scalar in scalars {
            if let Ok(key) = p256::SecretKey::from_slice(&scalar) {
                assert_eq!(
                    p256_x(&scalar),
                    <[u8; 32]>::from(key.public_key().as_affine().x())
                );
            }
        }
    }

    #[test]
    fn each_form_of_a_private_key_is_recognised() {
        let seed = rand::random();
        eprintln!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let crypto = openmls_rust_crypto::RustCrypto::default();
        let derived = |kem, ikm: &[u8]| {
            let config = HpkeConfig(kem, HpkeKdfType::HkdfSha256, HpkeAeadType::AesGcm128);
            crypto.derive_hpke_keypair(config, ikm).unwrap().public
        };
        for _ in 0..20 {
            let secret: [u8; 32] = random.random();
            let mut reversed = secret;
            reversed.reverse();
            let p256 = |x: [u8; 32]| {
                let mut keys = PublicKeys::default();
                let mut key = [4; 65];
                key[1..33].copy_from_slice(&x);
                keys.add_p256("key", key);
                keys
            };
            let mut of_x25519 = PublicKeys::default();
            of_x25519.add_x25519("key", x25519(secret));
            let mut of_ed25519 = PublicKeys::default();
            of_ed25519.add_ed25519("key", ed25519(&secret));
            let mut of_ikm = PublicKeys::default();
            of_ikm.add_x25519(
                "key",
                derived(HpkeKemType::DhKem25519, &secret)
                    .try_into()
                    .unwrap(),
            );
            let of_p256_ikm = {
                let mut keys = PublicKeys::default();
                keys.add_p256(
                    "key",
                    derived(HpkeKemType::DhKemP256, &secret).try_into().unwrap(),
                );
                keys
            };
            let cases = [
                (of_x25519, Form::X25519),
                (of_ed25519, Form::Ed25519Seed),
                (of_ikm, Form::X25519Ikm),
                (p256(p256_x(&secret)), Form::P256),
                (p256(p256_x(&reversed)), Form::P256Reversed),
                (of_p256_ikm, Form::P256Ikm),
            ];
            for (keys, form) in cases {
                assert_eq!(keys.owner(&secret), Some((form, "key")));
                assert_eq!(keys.owner(&random.random()), None);
            }
        }
    }
}
