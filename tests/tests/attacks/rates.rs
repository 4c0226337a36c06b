//! How much of everything the shipped policies let one app have, to the last of it: what is
//! spent is spent for all identities of that app, and is nothing to other apps.

use std::sync::atomic::{AtomicUsize, Ordering};

use mlskeyd_protocol::v1::*;

use crate::callers::{ran_as_root, stranger};
use crate::forge::*;
use crate::house::{App, House};
use crate::suite::{SUITE_1 as SUITE, sealed};

/// As the policies have them, in a minute.
const SIGNATURES: usize = 2400;
const OPENS: usize = 3000;
const KEYS: usize = 750;

/// Askers at once: each may be let through once when the last one is.
const ASKERS: usize = 16;

/// One app with two identities.
struct Scene {
    house: House,
    app: App,
    other: App,
    leaf: GeneratedHpke,
}

impl Scene {
    fn new() -> Self {
        let house = House::new("");
        let (app, other) = (
            App::new(&house, SUITE, "mallory"),
            App::new(&house, SUITE, "another"),
        );
        let leaf = app.generate();
        app.signed_leaf(&leaf, Source::Update, "talk", 0);
        Self {
            house,
            app,
            other,
            leaf,
        }
    }

    fn signs(&self, app: &App) -> Result<(), Failure> {
        let content = application("hello");
        let text = message(SUITE, "talk", 1, Sender::Member(0), &content);
        app.sign(&text).map(drop)
    }

    fn sealed(&self) -> Open {
        let info = labelled("UpdatePathNode", &group_context(SUITE, "talk", 1));
        sealed(SUITE, &self.leaf, &info, &SUITE.path_secret())
    }

    fn opens(&self) -> Result<(), Failure> {
        self.app.open_with(self.sealed()).map(drop)
    }

    fn makes(&self, app: &App) -> Result<(), Failure> {
        app.try_generate().map(drop)
    }

    /// Another user's app makes keys, signs and opens.
    fn others_are_served(&self) {
        let outcomes = stranger(self.house.path(), &self.house.socket(), &[]);
        let served = outcomes
            .iter()
            .filter(|outcome| outcome["reply"].is_string());
        assert_eq!(served.count(), 3, "{outcomes:?}");
    }
}

fn assert_refused(tried: Result<(), Failure>, policy: &str) {
    let failure = tried.unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied, "{failure:?}");
    assert_eq!(failure.policy.as_deref(), Some(policy), "{failure:?}");
    assert!(failure.advice.contains("wait"), "{failure:?}");
}

/// Asks until all of it is spent, of which so much was before.
fn spend(
    (before, rate): (usize, usize),
    policy: &str,
    ask: impl Fn() -> Result<(), Failure> + Sync,
) {
    let permitted = AtomicUsize::new(before);
    std::thread::scope(|scope| {
        for _ in 0..ASKERS {
            scope.spawn(|| {
                let failure = loop {
                    let spent = permitted.load(Ordering::Relaxed);
                    assert!(spent < 2 * rate, "nothing is refused");
                    match ask() {
                        Ok(()) => permitted.fetch_add(1, Ordering::Relaxed),
                        Err(failure) => break failure,
                    };
                };
                assert_refused(Err(failure), policy);
            });
        }
    });
    let permitted = permitted.into_inner();
    // More only if it took so long that the first ones do not count any more.
    assert!(permitted >= rate, "{permitted}");
}

#[test]
fn who_signs_without_end_is_stopped() {
    if ran_as_root("rates::who_signs_without_end_is_stopped") {
        return;
    }
    let scene = Scene::new();
    spend((1, SIGNATURES), "signature-rate", || {
        scene.signs(&scene.app)
    });
    assert_refused(scene.signs(&scene.other), "signature-rate");
    scene.opens().unwrap();
    scene.makes(&scene.app).unwrap();
    scene.others_are_served();
}

#[test]
fn who_opens_without_end_is_stopped() {
    if ran_as_root("rates::who_opens_without_end_is_stopped") {
        return;
    }
    let scene = Scene::new();
    let sealed = scene.sealed();
    spend((0, OPENS), "open-rate", || {
        scene.app.open_with(sealed.clone()).map(drop)
    });
    scene.signs(&scene.app).unwrap();
    scene.makes(&scene.app).unwrap();
    scene.others_are_served();
}

#[test]
fn who_makes_keys_without_end_is_stopped() {
    if ran_as_root("rates::who_makes_keys_without_end_is_stopped") {
        return;
    }
    let scene = Scene::new();
    // The identities and the leaf are three; to ask for one that is there makes none.
    for _ in 0..KEYS {
        App::new(&scene.house, SUITE, "mallory");
    }
    spend((3, KEYS), "key-rate", || scene.makes(&scene.app));
    assert_refused(scene.makes(&scene.other), "key-rate");
    scene.signs(&scene.other).unwrap();
    scene.opens().unwrap();
    scene.others_are_served();
}
