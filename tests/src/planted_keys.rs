//! A registry with very many keys: copies of one that a device made. None of
//! them works; the registry does not know that.

use mlskeyd::store::{ConnectionId, KeyRecord, MadeKey, NewKey, Registry, Settings, Under};
use mlskeyd::store_key::StoreKey;
use mlskeyd_protocol::v1::{Algorithm, Bytes, Claim, KeyId, Record, Settle, Settlement};
use tokio::task::JoinSet;

use crate::rig::Daemon;

/// The storage whose records name them.
const STORAGE: &str = "planted";

/// So many go into one transaction of the registry.
const AT_ONCE: usize = 64;

/// Copies an HPKE key of a daemon, which is stopped, an even number of times, as
/// the keys of KeyPackages; answers the copies' public keys.
pub fn plant(daemon: &Daemon, count: usize) -> Vec<Bytes> {
    let key = StoreKey::load_file(&daemon.store_key()).expect("the store key");
    let mac_key = key.subkey("mlskeyd v1 registry").expect("a subkey");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let registry = Registry::open(&daemon.state(), mac_key.expose(), Settings::default());
        let registry = registry.expect("the registry of a stopped daemon opens");
        assert_eq!(registry.read_only_reason(), None);
        let page = registry.keys_page(None, false).await.expect("a page");
        let hpke = |key: &KeyRecord| matches!(key.algorithm, Algorithm::Hpke(_));
        let mut keys = page.into_iter().map(|(key, _)| key);
        let pattern = keys.find(hpke).expect("an HPKE key");
        let storage = registry.attach(&pattern.owner, STORAGE.to_owned(), false, ConnectionId(1));
        storage.await.expect("it is attached");
        let mut planted = Vec::with_capacity(count);
        while planted.len() < count {
            let mut packages = JoinSet::new();
            for _ in 0..AT_ONCE.min((count - planted.len()).div_ceil(2)) {
                packages.spawn(package(registry.clone(), pattern.clone()));
            }
            planted.extend(packages.join_all().await.into_iter().flatten());
        }
        registry.close().await;
        planted
    })
}

/// The two keys of a KeyPackage, and the record that names them.
async fn package(registry: Registry, pattern: KeyRecord) -> [Bytes; 2] {
    let (init, leaf) = (
        copy(&registry, &pattern).await,
        copy(&registry, &pattern).await,
    );
    let record = Record::KeyPackage {
        reference: Bytes(init.0.as_bytes().to_vec()),
    };
    let claim = Claim {
        storage: STORAGE.to_owned(),
        record: record.clone(),
        keys: vec![init.0, leaf.0],
    };
    let claimed = registry.claim(&pattern.owner, claim).await;
    let written = Settlement::Written {
        record,
        generation: claimed.expect("they are claimed").generation,
    };
    let settle = Settle {
        storage: STORAGE.to_owned(),
        settlements: vec![written],
    };
    let settled = registry.settle(&pattern.owner, settle).await;
    settled.expect("it is settled");
    [init.1, leaf.1]
}

async fn copy(registry: &Registry, pattern: &KeyRecord) -> (KeyId, Bytes) {
    let id = KeyId::from_bytes(rand::random());
    let new = NewKey {
        id,
        owner: pattern.owner.clone(),
        algorithm: pattern.algorithm,
        device: pattern.device.clone(),
        tier: pattern.tier,
        generation: Under::Shared(pattern.generation),
        identity: None,
        connection: None,
        created: pattern.created,
        adopted: false,
        pin: false,
    };
    registry.begin_create(new).await.expect("it is journalled");
    let half: [u8; 32] = rand::random();
    let public_key = Bytes([&[4], half.as_slice(), half.as_slice()].concat());
    let made = MadeKey {
        id,
        public_key: public_key.clone(),
        blob: pattern.blob.clone(),
        tier: pattern.tier,
    };
    registry.finish_create(made).await.expect("it is finished");
    (id, public_key)
}
