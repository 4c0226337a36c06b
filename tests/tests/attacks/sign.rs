//! What must not be signed: forged leaves and messages, and what is no MLS.

use mlskeyd_protocol::v1::*;

use crate::forge::{self, *};
use crate::house::{App, House};
use crate::scene::{RULE, Scene};
use crate::suite::{Suite, for_each_suite};

for_each_suite!(
    forged_structures_are_refused_before_the_device_and_honest_ones_signed,
    the_leaf_that_founded_a_group_goes_into_no_key_package,
);

const MEMBER: Sender = Sender::Member(0);

fn scene(house: &House, suite: Suite) -> Scene {
    let mut s = Scene::new(house, suite);
    leaves(&mut s);
    key_packages(&mut s);
    messages(&mut s);
    external(&mut s);
    claims(&mut s);
    no_structures(&mut s);
    s
}

/// Leaves alone, as they are signed before they are built into something.
fn leaves(s: &mut Scene) {
    let key = s.app.generate();
    let mine = s.app.own_hpke(1);
    for source in [ALWAYS, Source::Update, Source::Commit] {
        let leaf = s.app.leaf(&mine, source);
        s.attack(
            "a leaf key of the app's own",
            leaf.tbs("g", 0),
            "SignLeafNode",
            "encryption key is not in custody",
        );
        let mut leaf = s.app.leaf(&key, source);
        leaf.signature_key = s.app.own.public.clone();
        s.attack(
            "a foreign signature key",
            leaf.tbs("g", 0),
            "SignLeafNode",
            "another signature key",
        );
        let mut leaf = s.app.leaf(&key, source);
        leaf.credential = forge::credential("alice");
        s.attack(
            "another's credential",
            leaf.tbs("g", 0),
            "SignLeafNode",
            "credential",
        );
        let mut leaf = s.app.leaf(&key, source);
        leaf.encryption_key = s.app.me.public_key.0.clone();
        s.attack(
            "the signature key as leaf key",
            leaf.tbs("g", 0),
            "SignLeafNode",
            "encryption key is not in custody",
        );
    }
    let bound = s.app.generate();
    s.app.signed_leaf(&bound, Source::Update, "g", 0);
    let leaf = s.app.leaf(&bound, Source::Update);
    s.attack(
        "a leaf key in another group",
        leaf.tbs("other", 0),
        "SignLeafNode",
        "another group or leaf",
    );
    s.attack(
        "a leaf key at another place",
        leaf.tbs("g", 1),
        "SignLeafNode",
        "another group or leaf",
    );
    let leaf = s.app.leaf(&bound, ALWAYS);
    s.attack(
        "a member's leaf key in a KeyPackage",
        leaf.tbs("", 0),
        "SignLeafNode",
        "another group or leaf",
    );
    s.honest
        .push(("a leaf", s.app.leaf(&key, Source::Commit).tbs("g", 0)));
    s.honest.push((
        "the same leaf again",
        s.app.leaf(&bound, Source::Update).tbs("g", 0),
    ));
}

fn key_packages(s: &mut Scene) {
    let suite = s.app.suite;
    const ACTION: &str = "SignKeyPackage";
    let (init, leaf, other) = (s.app.generate(), s.app.generate(), s.app.generate());
    let signed = s.app.signed_leaf(&leaf, ALWAYS, "", 0);
    let tbs = |init: &GeneratedHpke, leaf: &[u8]| {
        key_package_tbs(&key_package(suite, &init.public_key, leaf, false))
    };
    s.attack(
        "an init key of the app's own",
        tbs(&s.app.own_hpke(1), &signed),
        ACTION,
        "init key is not in custody",
    );
    s.attack(
        "one key for both",
        tbs(&leaf, &signed),
        ACTION,
        "are the same",
    );
    let forged = s.app.leaf(&s.app.own_hpke(1), ALWAYS);
    let forged = s.app.self_signed(&forged, "", 0);
    s.attack(
        "a leaf of the app's own, signed by itself",
        tbs(&init, &forged),
        ACTION,
        "no valid signature",
    );
    let mut forged = s.app.leaf(&leaf, ALWAYS);
    forged.signature_key = s.app.own.public.clone();
    let forged = s.app.self_signed(&forged, "", 0);
    s.attack(
        "a leaf under the app's own signature key",
        tbs(&init, &forged),
        ACTION,
        "another signature key",
    );
    let mut forged = s.app.leaf(&leaf, ALWAYS);
    forged.credential = forge::credential("alice");
    let forged = s.app.self_signed(&forged, "", 0);
    s.attack(
        "another's credential",
        tbs(&init, &forged),
        ACTION,
        "credential",
    );
    let replayed = s.app.leaf(&leaf, Source::KeyPackage(0, 7)).signed(&[0; 64]);
    s.attack(
        "a leaf with another lifetime than was signed",
        tbs(&init, &replayed),
        ACTION,
        "no valid signature",
    );
    s.honest.push(("a KeyPackage", tbs(&init, &signed)));

    let (used_init, used_leaf) = (s.app.generate(), s.app.generate());
    s.app.key_package(&used_init, &used_leaf, ALWAYS, false);
    let used = s.app.signed_leaf(&used_leaf, ALWAYS, "", 0);
    s.attack(
        "another init key to a leaf",
        tbs(&other, &used),
        ACTION,
        "another KeyPackage",
    );
    s.attack(
        "another leaf to an init key",
        tbs(&used_init, &signed),
        ACTION,
        "another KeyPackage",
    );
    let last_resort = key_package_tbs(&key_package(suite, &used_init.public_key, &used, true));
    s.attack(
        "a KeyPackage that becomes last-resort",
        last_resort,
        ACTION,
        "another KeyPackage",
    );
    let leaf_of_init = s.app.leaf(&used_init, Source::Commit);
    s.attack(
        "an init key as leaf key",
        leaf_of_init.tbs("g", 0),
        "SignLeafNode",
        "another purpose",
    );
    s.honest
        .push(("the same KeyPackage again", tbs(&used_init, &used)));
}

/// Members' messages with a leaf of their own in them.
fn messages(s: &mut Scene) {
    let suite = s.app.suite;
    type Body = fn(&[u8]) -> Vec<u8>;
    let kinds: [(Source, Body, &str); 2] = [
        (Source::Update, update, "SignProposalUpdate"),
        (Source::Commit, commit, "SignCommit"),
    ];
    for (source, body, action) in kinds {
        let key = s.app.generate();
        let signed = s.app.signed_leaf(&key, source, "g", 0);
        let say = |leaf: &[u8]| message(suite, "g", 3, MEMBER, &body(leaf));

        let forged = s.app.leaf(&s.app.own_hpke(1), source);
        let forged = s.app.self_signed(&forged, "g", 0);
        s.attack(
            "a leaf key of the app's own",
            say(&forged),
            action,
            "no valid signature",
        );
        let mut forged = s.app.leaf(&s.app.own_hpke(1), source);
        forged.signature_key = s.app.own.public.clone();
        let forged = s.app.self_signed(&forged, "g", 0);
        s.attack(
            "a whole leaf of the app's own",
            say(&forged),
            action,
            "signature key that is not in custody",
        );
        let mut forged = s.app.leaf(&key, source);
        forged.credential = forge::credential("alice");
        let forged = s.app.self_signed(&forged, "g", 0);
        s.attack("another's credential", say(&forged), action, "credential");
        let moved = message(suite, "other", 3, MEMBER, &body(&signed));
        s.attack(
            "a leaf of another group",
            moved,
            action,
            "no valid signature",
        );
        let moved = message(suite, "g", 3, Sender::Member(1), &body(&signed));
        s.attack(
            "a leaf of another place",
            moved,
            action,
            "no valid signature",
        );
        s.unknown(
            "two groups at once",
            message_in(suite, "other", "g", 3, MEMBER, &body(&signed)),
        );
        s.honest.push((action, say(&signed)));
    }
    // A leaf that was signed for the other purpose.
    let (update_key, commit_key) = (s.app.generate(), s.app.generate());
    let of_update = s.app.signed_leaf(&update_key, Source::Update, "g", 0);
    let of_commit = s.app.signed_leaf(&commit_key, Source::Commit, "g", 0);
    s.unknown(
        "an Update's leaf in a commit",
        message(suite, "g", 3, MEMBER, &commit(&of_update)),
    );
    s.unknown(
        "a commit's leaf in an Update",
        message(suite, "g", 3, MEMBER, &update(&of_commit)),
    );
    s.honest.push((
        "a text",
        message(suite, "g", 3, MEMBER, &application("hello")),
    ));
}

/// From outside of the group: an external commit, and an Add of oneself.
fn external(s: &mut Scene) {
    let suite = s.app.suite;
    let key = s.app.generate();
    let kem_output = s.app.own_hpke(2).public_key;
    let enter_into = |group: &str, leaf: &[u8]| {
        let commit = external_commit(&kem_output, leaf);
        message(suite, group, 3, Sender::NewMemberCommit, &commit)
    };
    let enter = |leaf: &[u8]| enter_into("g", leaf);
    let forged = s.app.leaf(&s.app.own_hpke(1), Source::Commit);
    let forged = s.app.self_signed(&forged, "g", 4);
    s.attack(
        "a leaf key of the app's own",
        enter(&forged),
        "SignCommit",
        "encryption key is not in custody",
    );
    let unsigned = s.app.leaf(&key, Source::Commit);
    let unsigned = s.app.self_signed(&unsigned, "g", 4);
    s.attack(
        "a leaf that was never signed here",
        enter(&unsigned),
        "SignCommit",
        "never signed here",
    );
    let mut foreign = s.app.leaf(&key, Source::Commit);
    foreign.signature_key = s.app.own.public.clone();
    let foreign = s.app.self_signed(&foreign, "g", 4);
    s.attack(
        "a foreign signature key",
        enter(&foreign),
        "SignCommit",
        "another signature key",
    );
    let entering = s.app.generate();
    let signed = s.app.signed_leaf(&entering, Source::Commit, "g", 4);
    s.attack(
        "a leaf of another group",
        enter_into("other", &signed),
        "SignCommit",
        "no valid signature",
    );
    s.honest.push(("an external commit", enter(&signed)));

    let (init, leaf) = (s.app.generate(), s.app.generate());
    let (package, signature) = s.app.key_package(&init, &leaf, ALWAYS, false);
    let ask = |package: &[u8], signature: &[u8]| {
        message(
            suite,
            "g",
            3,
            Sender::NewMemberProposal,
            &add(package, signature),
        )
    };
    const ADD: &str = "SignProposalAdd";
    s.attack(
        "an unsigned KeyPackage",
        ask(&package, &[0; 64]),
        ADD,
        "no valid signature",
    );
    let signed = s.app.signed_leaf(&leaf, ALWAYS, "", 0);
    let own_init = key_package(suite, &s.app.own_hpke(1).public_key, &signed, false);
    s.attack(
        "an init key of the app's own",
        ask(&own_init, &signature),
        ADD,
        "another KeyPackage",
    );
    let own_leaf = s.app.leaf(&s.app.own_hpke(1), ALWAYS);
    let own_leaf = s.app.self_signed(&own_leaf, "", 0);
    let own_leaf = key_package(suite, &init.public_key, &own_leaf, false);
    s.attack(
        "a leaf key of the app's own",
        ask(&own_leaf, &signature),
        ADD,
        "no valid signature",
    );
    s.honest
        .push(("an external Add", ask(&package, &signature)));
}

/// Structures of another cipher suite than the keys are of: policies would judge
/// an empty claim.
fn claims(s: &mut Scene) {
    const WHY: &str = "cipher suite";
    let suite = s.app.suite;
    let (init, leaf) = (s.app.generate(), s.app.generate());
    let signed = s.app.signed_leaf(&leaf, ALWAYS, "", 0);
    let moved = s.app.generate();
    let moved = s.app.signed_leaf(&moved, Source::Commit, "g", 0);
    for number in [0x0001, 0x0002, 0x0003, 0x0007, 0x9999] {
        let claimed = Suite { number, ..suite };
        let text = message(claimed, "g", 3, MEMBER, &application("hello"));
        let package = key_package_tbs(&key_package(claimed, &init.public_key, &signed, false));
        let path = message(claimed, "g", 3, MEMBER, &commit(&moved));
        // Suites 0x0001 and 0x0003 differ in what no key is of.
        let is_own = matches!((suite.number, number), (1 | 3, 1 | 3) | (2, 2) | (7, 7));
        if is_own {
            s.honest.push(("a message of the suite", text));
        } else {
            s.attack(
                "a message of another suite",
                text,
                "SignApplicationMessage",
                WHY,
            );
            s.attack(
                "a KeyPackage of another suite",
                package,
                "SignKeyPackage",
                WHY,
            );
            s.attack("a commit of another suite", path, "SignCommit", WHY);
        }
    }
    let other = match suite.kem {
        Kem::DhKemP256 | Kem::DhKemP384 => Kem::DhKemX25519,
        Kem::DhKemX25519 => Kem::DhKemP256,
    };
    let foreign = s.app.generate_of(other);
    let package = key_package(suite, &foreign.public_key, &signed, false);
    s.attack(
        "an init key of another KEM",
        key_package_tbs(&package),
        "SignKeyPackage",
        WHY,
    );
    let foreign = s.app.generate_of(other);
    let signed = s.app.signed_leaf(&foreign, Source::Commit, "g", 0);
    s.attack(
        "a leaf key of another KEM",
        message(suite, "g", 3, MEMBER, &commit(&signed)),
        "SignCommit",
        WHY,
    );
}

fn no_structures(s: &mut Scene) {
    let suite = s.app.suite;
    s.unknown("no label", b"sign this".to_vec());
    s.unknown("an unknown label", labelled("TotallyNewTBS", b"content"));
    s.unknown(
        "a label of another protocol",
        [opaque(b"SSH"), opaque(b"login")].concat(),
    );
    let (init, leaf) = (s.app.generate(), s.app.generate());
    let signed = s.app.signed_leaf(&leaf, ALWAYS, "", 0);
    let package = key_package(suite, &init.public_key, &signed, false);
    let text = message(suite, "g", 3, MEMBER, &application("hello"));
    for cut in 0..package.len() {
        s.unknown("a truncated KeyPackage", key_package_tbs(&package[..cut]));
    }
    for cut in 1..text.len() {
        s.unknown("a truncated message", text[..cut].to_vec());
    }
    s.unknown(
        "a message with more behind it",
        [text.clone(), vec![0]].concat(),
    );
    let longer = [package.clone(), vec![0]].concat();
    s.unknown("a KeyPackage with more behind it", key_package_tbs(&longer));
    s.honest
        .push(("a whole KeyPackage", key_package_tbs(&package)));
}

fn forged_structures_are_refused_before_the_device_and_honest_ones_signed(suite: Suite) {
    let mut house = House::new("");
    scene(&house, suite).play(&mut house);
}

fn the_leaf_that_founded_a_group_goes_into_no_key_package(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    let (leaf, init) = (app.generate(), app.generate());
    let signed = app.signed_leaf(&leaf, ALWAYS, "", 0);
    let info = labelled("UpdatePathNode", &group_context(suite, "g", 1));
    app.open(&leaf, &info, &suite.path_secret()).unwrap();
    for last_resort in [false, true] {
        let package = key_package(suite, &init.public_key, &signed, last_resort);
        let failure = app.sign(&key_package_tbs(&package)).unwrap_err();
        assert_eq!(failure.policy.as_deref(), Some(RULE), "{failure:?}");
        assert!(failure.message.contains("another group"), "{failure:?}");
    }
    app.open(&leaf, &info, &suite.path_secret()).unwrap();
}
