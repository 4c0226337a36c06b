//! What a request costs, as ratios within one run: `cargo bench -p mlskeyd-tests`.
//!
//! Medians over one socket to a daemon in a process of its own, with policy and
//! audit on and durability as in service, beside the same operation on the
//! device in this process. Pin it to one core (`taskset -c 0`) and let it roam:
//! where the two processes run decides most.

use std::time::{Duration, Instant};

use mlskeyd::devices::software::{SoftwareDevice, Start};
use mlskeyd::devices::{Algorithm, Device, GenerationId, KeyId, NewKey, SignatureScheme, Tier};
use mlskeyd::store_key::StoreKey;
use mlskeyd_protocol::client::{Call, Client, ClientConfig};
use mlskeyd_protocol::v1::{
    CreateIdentity, Credential, GenerateHpke, Kem, Placement, SecretBytes, Sign,
};
use mlskeyd_provider::testing::TestDaemon;

const ROUNDS: usize = 3000;
const CLIENTS: usize = 16;

fn main() {
    // cargo's own arguments, such as --bench, change nothing here.
    let daemon = TestDaemon::start().expect("a daemon");
    let client = Client::new(ClientConfig::new(daemon.socket(), "bench"));
    let call = Call::default();
    let content = application_message(128);

    let status = median(ROUNDS, || drop(client.status(&call).expect("status")));
    println!("status, door to reply            {status:>8.1} us");
    for scheme in [SignatureScheme::Ed25519, SignatureScheme::EcdsaP256Sha256] {
        let key = client
            .create_identity(identity(scheme), &call)
            .expect("an identity")
            .key;
        let sign = || {
            let content = SecretBytes::new(content.clone());
            drop(client.sign(Sign { key, content }, &call).expect("sign"));
        };
        let served = median(ROUNDS, sign);
        let direct = direct_sign(scheme, &content);
        println!("sign application message, {scheme:?}");
        println!("    at the device, in process    {direct:>8.1} us");
        println!("    through the daemon           {served:>8.1} us");
        println!(
            "    all but the device           {:>8.1} us",
            served - direct
        );
        println!("    through the daemon / direct  {:>8.2}", served / direct);
        let (rate, slowest) = crowd(&client, key, &content);
        println!(
            "    {CLIENTS} clients: {rate:.0}/s, {:.2} of one device's direct rate; slowest {slowest:.2} of the mean",
            rate * direct / 1e6
        );
    }
    let request = || GenerateHpke {
        kem: Kem::DhKemX25519,
        placement: Placement::default(),
    };
    let generate = median(300, || {
        drop(client.generate_hpke(request(), &call).expect("a key"))
    });
    println!("make an HPKE key, durably        {generate:>8.1} us");
}

/// Signatures per second of many clients at once, and the slowest client's part
/// of the mean.
fn crowd(client: &Client, key: KeyId, content: &[u8]) -> (f64, f64) {
    let each: Vec<f64> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let begun = Instant::now();
                    let mut done = 0.0;
                    while begun.elapsed() < Duration::from_secs(2) {
                        let content = SecretBytes::new(content.to_vec());
                        client
                            .sign(Sign { key, content }, &Call::default())
                            .expect("sign");
                        done += 1.0;
                    }
                    done / begun.elapsed().as_secs_f64()
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    });
    let total: f64 = each.iter().sum();
    let slowest = each.iter().copied().fold(f64::INFINITY, f64::min);
    (total, slowest * CLIENTS as f64 / total)
}

fn direct_sign(scheme: SignatureScheme, content: &[u8]) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let store_key = StoreKey::create_file(&dir.path().join("key")).expect("a store key");
    let path = dir.path().join("device");
    let mut device =
        SoftwareDevice::open("direct", &path, &store_key, Start::CreateIfAbsent).expect("a device");
    let generation = GenerationId::from_bytes([1; 16]);
    let generator = device.generator().expect("it generates");
    generator
        .create_generation(generation)
        .expect("a generation");
    let key = generator
        .generate(NewKey {
            id: KeyId::from_bytes([2; 16]),
            algorithm: Algorithm::Signature(scheme),
            tier: Tier::Software,
            generation,
        })
        .expect("a key");
    let signer = device.signer().expect("it signs");
    median(ROUNDS, || drop(signer.sign(&key, content).expect("sign")))
}

/// The median time of one run, in microseconds.
fn median(rounds: usize, mut run: impl FnMut()) -> f64 {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[rounds / 2].as_secs_f64() * 1e6
}

fn identity(scheme: SignatureScheme) -> CreateIdentity {
    let name = format!("{scheme:?}");
    CreateIdentity {
        credential: Credential::Basic(name.as_bytes().into()),
        name,
        scheme,
        placement: Placement::default(),
    }
}

/// A FramedContentTBS in SignContent, as RFC 9420 (5.1.2, 6.1) lays them out.
fn application_message(length: u8) -> Vec<u8> {
    let mut tbs = vec![0, 1, 0, 2, 1, b'g'];
    tbs.extend(7_u64.to_be_bytes());
    tbs.extend([1, 0, 0, 0, 0, 0, 1, 0x40, length]);
    tbs.resize(tbs.len() + usize::from(length), 0xA5);
    tbs.extend([0, 1, 0, 1, 1, b'g']);
    tbs.extend(7_u64.to_be_bytes());
    tbs.extend([0, 0, 0]);
    let label = b"MLS 1.0 FramedContentTBS";
    let mut content = vec![u8::try_from(label.len()).expect("a short label")];
    content.extend(label);
    let header = 0x4000 | u16::try_from(tbs.len()).expect("a short message");
    content.extend(header.to_be_bytes());
    content.extend(tbs);
    content
}
