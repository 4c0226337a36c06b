//! What a token is and offers, as `mlskeyctl devices` shows it, and in which tier
//! and how many keys it takes.

use mlskeyd_faulty_module::Function;
use mlskeyd_protocol::v1::Tier;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{FaultyHsm, Stage};
use openmls::prelude::Ciphersuite;
use serde_json::{Value, json};

use super::scene::{App, SUITE, Scene};

const CURVE25519: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

fn curve25519(scene: &Scene, name: &str, tier: Option<Tier>) -> Result<App, String> {
    App::with(&scene.daemon.socket(), name, "hsm", CURVE25519, tier)
}

/// How keys of an algorithm are kept in a tier; `null`: not at all.
fn how(device: &Value, algorithm: &str, tier: &str) -> Value {
    let mut offers = device["offers"].as_array().unwrap().iter();
    let offer = offers.find(|offer| offer["algorithm"] == algorithm && offer["tier"] == tier);
    offer.map_or(Value::Null, |offer| offer["how"].clone())
}

/// The tier of a suite, and why it is no better.
fn suite(device: &Value, number: &str) -> (Value, String) {
    let mut suites = device["suites"].as_array().unwrap().iter();
    let suite = suites.find(|suite| suite["suite"] == number).unwrap();
    let why = suite["why"].as_array().unwrap().iter();
    let why: Vec<_> = why.map(|why| why.as_str().unwrap()).collect();
    (suite["tier"].clone(), why.join("; "))
}

/// Makes KeyPackages until there is no room for more: says why.
fn fill(app: &App) -> String {
    loop {
        if let Err(reason) = app.key_package() {
            return reason;
        }
    }
}

#[test]
fn a_token_is_shown_with_all_that_it_is_and_offers() {
    let scene = Scene::new(&["mlskeyd"], "sessions = 3\nmax_objects = 500\n");
    scene.await_state("ready");
    let hsm = scene.hsm();
    let facts = &hsm["facts"];
    assert_eq!(facts["label"], "mlskeyd");
    assert_eq!(facts["serial"], scene.softhsm.serials()[0]);
    assert_eq!(facts["manufacturer"], "SoftHSM project");
    assert_eq!(facts["model"], "SoftHSM v2");
    let firmware = facts["firmware"].as_str().unwrap();
    assert!(firmware.starts_with("2."), "{firmware}");
    let generations = facts["generations"].as_str().unwrap();
    assert!(
        generations.contains("with CKA_UNWRAP_TEMPLATE"),
        "{generations}"
    );

    let wrapped = "wrapped by CKM_AES_KEY_WRAP_PAD, enforced; CKM_ECDH1_DERIVE";
    assert_eq!(how(&hsm, "DHKEM P-256", "hardware"), wrapped);
    let object = "an object of the token; CKM_ECDH1_DERIVE";
    assert_eq!(how(&hsm, "DHKEM X25519", "hardware"), object);
    let sealed = "made by the daemon, encrypted by CKM_AES_CBC_PAD";
    assert_eq!(how(&hsm, "Ed25519", "sealed"), sealed);
    let (tier, why) = suite(&hsm, "0x0001");
    assert_eq!(tier, "hardware");
    assert!(why.contains("in hardware 450 at most"), "{why}");

    let none = json!({ "used": 0, "peak": null, "most": 500 });
    assert_eq!(hsm["counts"]["objects"], none);
    assert_eq!(hsm["counts"]["sessions"]["most"], 3);
    assert_eq!(hsm["counts"]["sessions"]["used"], 0);
    assert_eq!(hsm["hpke_tier"], Value::Null);

    let text = scene.daemon.ctl_for_people(&["devices"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for words in [
        "hsm  pkcs11  ready",
        "SoftHSM v2",
        wrapped,
        "0 of 500 in use",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
}

#[test]
fn keys_that_are_objects_are_counted_as_they_come_and_go() {
    let mut scene = Scene::new(&["mlskeyd"], "");
    let objects = |scene: &Scene| scene.hsm()["counts"]["objects"]["used"].clone();
    let app = scene.app("app", "hsm");
    assert_eq!(objects(&scene), 1);
    // These are wrapped.
    app.key_package().unwrap();
    assert_eq!(objects(&scene), 1);
    let owner = format!("{}/default", rustix::process::geteuid().as_raw());
    scene
        .daemon
        .ctl(&["identities", "rotate", &owner, "app"])
        .unwrap();
    assert_eq!(objects(&scene), 2);
    let at_once = ["identities", "rotate", &owner, "app", "--grace", "0s"];
    scene.daemon.ctl(&at_once).unwrap();
    scene.daemon.ctl(&["keys", "sweep"]).unwrap();
    assert_eq!(objects(&scene), 2);
    // And counted anew by another helper.
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    scene.await_state("ready");
    assert_eq!(objects(&scene), 2);
}

#[test]
fn what_is_shown_is_remembered_and_no_call_of_the_module() {
    const ALL: [Function; 23] = [
        Function::GetSlotList,
        Function::GetTokenInfo,
        Function::OpenSession,
        Function::CloseSession,
        Function::GetSessionInfo,
        Function::Login,
        Function::CreateObject,
        Function::DestroyObject,
        Function::GetAttributeValue,
        Function::FindObjectsInit,
        Function::FindObjects,
        Function::FindObjectsFinal,
        Function::EncryptInit,
        Function::Encrypt,
        Function::DecryptInit,
        Function::Decrypt,
        Function::SignInit,
        Function::Sign,
        Function::GenerateKey,
        Function::GenerateKeyPair,
        Function::WrapKey,
        Function::UnwrapKey,
        Function::DeriveKey,
    ];
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    let scene = Scene::with(stage, hsm.softhsm().clone(), hsm.device("hsm", "mlskeyd"));
    let app = scene.app("app", "hsm");
    let calls = || ALL.map(|function| hsm.control().calls(function));
    let (before, shown) = (calls(), scene.hsm());
    scene.daemon.ctl(&["status"]).unwrap();
    assert_eq!(calls(), before);
    // Also of a token that is gone.
    hsm.control().take_out();
    while scene.state().0 == "ready" {
        app.key_package().unwrap_err();
    }
    let gone = scene.hsm();
    assert_eq!(gone["facts"], shown["facts"]);
    assert_eq!(gone["offers"], shown["offers"]);
    assert_eq!(gone["counts"]["objects"], shown["counts"]["objects"]);
    assert_eq!(gone["counts"]["sessions"]["used"], 0);
}

#[test]
fn it_shows_that_a_token_gives_fewer_sessions_than_configured() {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    hsm.control().set_max_sessions(2);
    let scene = Scene::with(stage, hsm.softhsm().clone(), hsm.device("hsm", "mlskeyd"));
    let apps: Vec<_> = (0..6)
        .map(|n| scene.app(&format!("app {n}"), "hsm"))
        .collect();
    let sessions = || scene.hsm()["counts"]["sessions"].clone();
    std::thread::scope(|scope| {
        for app in &apps {
            scope.spawn(|| {
                while sessions()["peak"].as_u64() < Some(2) {
                    app.key_package().unwrap();
                }
                (0..10).for_each(|_| app.key_package().unwrap());
            });
        }
    });
    assert_eq!(sessions(), json!({ "used": 0, "peak": 2, "most": 4 }));
    assert_eq!(hsm.control().sessions_peak(), 2);
    assert!(scene.daemon.log().contains("the token gives no session"));
}

#[test]
fn hpke_keys_leave_room_for_the_signature_keys_of_others() {
    let scene = Scene::new(&["mlskeyd"], "max_objects = 20\n");
    let greedy = curve25519(&scene, "greedy", None).unwrap();
    let full = fill(&greedy);
    assert!(full.contains("18 private keys"), "{full}");
    assert!(
        full.contains("the last 2 that `max_objects` allows"),
        "{full}"
    );
    assert!(full.contains("`hpke_tier`"), "{full}");
    for name in ["one", "other"] {
        curve25519(&scene, name, None).unwrap();
    }
    let full = curve25519(&scene, "late", None).err().unwrap();
    assert!(
        full.contains("20 private keys, as many as `max_objects`"),
        "{full}"
    );
    let count = json!({ "used": 20, "peak": null, "most": 20 });
    assert_eq!(scene.hsm()["counts"]["objects"], count);
    assert_eq!(scene.state().0, "ready");
}

#[test]
fn an_admin_has_hpke_keys_sealed_so_that_their_number_has_no_end() {
    let set = "max_objects = 10\nhpke_tier = \"sealed\"\n";
    let scene = Scene::new(&["mlskeyd"], set);
    let app = curve25519(&scene, "app", None).unwrap();
    assert_eq!(app.identity.info().tier, Tier::Hardware);
    for _ in 0..20 {
        app.key_package().unwrap();
    }
    let hsm = scene.hsm();
    assert_eq!(hsm["counts"]["objects"]["used"], 1);
    assert_eq!(hsm["hpke_tier"], "sealed");
    let (tier, why) = suite(&hsm, "0x0001");
    assert_eq!(tier, "sealed");
    assert!(why.contains("DHKEM X25519: `hpke_tier` is sealed"), "{why}");
    let keys = scene.daemon.ctl(&["keys"]).unwrap();
    let mut keys = keys.as_array().unwrap().iter();
    assert!(keys.all(|key| (key["tier"] == "sealed") == (key["purpose"] != "signature")));

    // An app that names a tier has it.
    let named = curve25519(&scene, "named", Some(Tier::Hardware)).unwrap();
    let full = fill(&named);
    assert!(full.contains("`max_objects`"), "{full}");
    app.key_package().unwrap();
}

#[test]
fn a_configured_tier_that_the_token_does_not_do_is_refused_and_not_lowered() {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    hsm.control().set_without_curve25519(true);
    let device = hsm.device("hsm", "mlskeyd") + "hpke_tier = \"hardware\"\n";
    let scene = Scene::with(stage, hsm.softhsm().clone(), device);
    let app = curve25519(&scene, "app", None).unwrap();
    let refused = app.key_package().unwrap_err();
    let wanted = "no DHKEM X25519 key in tier hardware, which its `hpke_tier` sets";
    assert!(refused.contains(wanted), "{refused}");
    assert!(refused.contains("DHKEM X25519 (sealed)"), "{refused}");
    let (tier, why) = suite(&scene.hsm(), "0x0001");
    assert_eq!(tier, Value::Null);
    assert!(why.contains("an app has to name another"), "{why}");
    assert_eq!(suite(&scene.hsm(), "0x0002").0, "hardware");
    let named = curve25519(&scene, "named", Some(Tier::Sealed)).unwrap();
    named.key_package().unwrap();
    App::with(&scene.daemon.socket(), "other", "hsm", SUITE, None)
        .unwrap()
        .key_package()
        .unwrap();
}
