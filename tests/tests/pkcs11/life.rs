//! The life of keys on a token: in a group's random life, and of many made and
//! destroyed at once.

use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig};
use mlskeyd_tests::mls_run::{Plan, Remains, Run, seed};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Options, SoftHsm, Stage};
use openmls::prelude::{Ciphersuite, KeyPackage};
use openmls_traits::OpenMlsProvider as _;
use openmls_traits::storage::StorageProvider as _;

use crate::scene::{App, Scene};

/// Objects of a signature key: itself, and its generation's key.
const OBJECTS_OF_SIGNATURE_KEY: usize = 2;

fn play(suite: Ciphersuite) {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("foreign");
    softhsm.add_token("mlskeyd");
    let plan = Plan {
        suite,
        operations: 200,
        options: Options {
            extra: softhsm.device("hsm", "mlskeyd"),
            ..Options::default()
        },
        device: "hsm".to_owned(),
        bus: None,
    };
    let remains = Run::play(&stage, &plan, seed());
    assert_eq!(remains, Remains::of_identities(remains.participants));
    assert_eq!(
        softhsm.objects(),
        remains.participants * OBJECTS_OF_SIGNATURE_KEY,
        "nothing else is left on the token"
    );
}

/// HPKE keys are wrapped.
#[test]
fn a_group_lives_with_suite_0x0002() {
    play(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256);
}

/// HPKE keys are objects: SoftHSM does not wrap those of Curve25519.
#[test]
fn a_group_lives_with_suite_0x0001() {
    play(Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519);
}

/// Keys that are objects of the token are destroyed while others are made: SoftHSM
/// fails over that now and then, and it must not be seen.
#[test]
fn keys_are_made_and_destroyed_at_once() {
    const APPS: usize = 3;
    const ROUNDS: usize = 25;
    let suite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
    let mut scene = Scene::new(&["mlskeyd"], "");
    let at_once = ["grace", "orphan_grace"].map(|name| (name, "0s".to_owned()));
    scene.options.lifetimes = at_once.into();
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    let socket = scene.daemon.socket();
    let admin = AdminClient::new(ClientConfig::new(&socket, "life"));
    let sweep = || admin.sweep_all(&Call::default(), |_| {}).unwrap();

    let work = |number| {
        let name = format!("app {number}");
        let app = App::with(&socket, &name, "hsm", suite, None).unwrap();
        for _ in 0..ROUNDS {
            make_and_delete(&app);
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        let start = |number| scope.spawn(move || work(number));
        let workers: Vec<_> = (0..APPS).map(start).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            sweep();
        }
    });
    // The last delete of each app waits for its next call, which does not come.
    for storage in admin.storages(&Call::default()).unwrap() {
        let forgotten = admin.forget_storage(storage.owner, &storage.name, &Call::default());
        forgotten.unwrap();
    }
    while sweep().destroyed > 0 {}
    assert_eq!(scene.softhsm.objects(), APPS * OBJECTS_OF_SIGNATURE_KEY);
}

/// A KeyPackage, and so two keys, for a moment.
fn make_and_delete(app: &App) {
    let with_key = app.identity.credential_with_key().unwrap();
    let signer = app.identity.signer();
    let built = KeyPackage::builder().build(app.suite, &app.provider, &signer, with_key);
    let bundle = built.unwrap_or_else(|error| {
        panic!("{error}: {:?}", app.provider.last_failure());
    });
    let reference = bundle
        .key_package()
        .hash_ref(app.provider.crypto())
        .unwrap();
    app.provider
        .storage()
        .delete_key_package(&reference)
        .unwrap();
}
