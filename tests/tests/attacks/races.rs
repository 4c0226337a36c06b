//! Requests at once that each may be served, and not all of them together.

use std::sync::Barrier;

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{Bytes, CreateIdentity, Credential, Failure, KeyState, Placement};

use crate::forge::*;
use crate::house::{App, House, failure};
use crate::policies::company;
use crate::suite::{SUITE_1, Suite, for_each_suite};

for_each_suite!(
    one_leaf_key_is_bound_to_one_group,
    one_leaf_of_a_key_package_opens_for_one_group,
    one_init_key_serves_one_key_package,
);

const AT_ONCE: usize = 8;

/// Does something eight times at once, and answers which of them succeeded.
fn at_once(work: impl Fn(usize) -> Result<Vec<u8>, Failure> + Sync) -> Vec<usize> {
    let start = Barrier::new(AT_ONCE);
    std::thread::scope(|scope| {
        let work = &work;
        let start = &start;
        let tries: Vec<_> = (0..AT_ONCE)
            .map(|number| {
                scope.spawn(move || {
                    start.wait();
                    work(number).is_ok()
                })
            })
            .collect();
        let done = tries.into_iter().enumerate();
        done.filter_map(|(number, t)| t.join().unwrap().then_some(number))
            .collect()
    })
}

fn one_leaf_key_is_bound_to_one_group(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    for _ in 0..5 {
        let key = app.generate();
        let leaf = app.leaf(&key, Source::Commit);
        let bound = at_once(|number| app.sign(&leaf.tbs(&format!("group {number}"), 0)));
        assert_eq!(bound.len(), 1, "{bound:?}");
        let again = at_once(|number| app.sign(&leaf.tbs(&format!("group {number}"), 0)));
        assert_eq!(again, bound);
    }
}

const ONE_IDENTITY: &str = r#"
@id("company/one-identity") @reason("one name for one person") @advice("use that one")
forbid(principal, action == Action::"CreateIdentity", resource)
when { !context.exists && context.others > 0 };
"#;

/// How many identities there are counts when one is made, not when it was asked for.
#[test]
fn of_many_identities_at_once_one_is_made() {
    let (house, _) = company(ONE_IDENTITY);
    let client = house.client();
    let made = at_once(|number| {
        let request = CreateIdentity {
            name: format!("mallory {number}"),
            credential: Credential::Basic(Bytes::from(b"mallory".as_slice())),
            scheme: SUITE_1.scheme,
            placement: Placement::default(),
        };
        let made = client.create_identity(request, &Call::default());
        made.map(|identity| identity.public_key.0).map_err(failure)
    });
    assert_eq!(made.len(), 1, "{made:?}");
    let living = house.keys();
    let living = living
        .iter()
        .filter(|key| key.key.state == KeyState::Active);
    assert_eq!(living.count(), 1, "the keys of the others are destroyed");
}

fn one_leaf_of_a_key_package_opens_for_one_group(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    for _ in 0..5 {
        let (init, leaf) = (app.generate(), app.generate());
        app.key_package(&init, &leaf, ALWAYS, false);
        let open = |number: usize| {
            let info = labelled(
                "UpdatePathNode",
                &group_context(suite, &format!("group {number}"), 1),
            );
            app.open(&leaf, &info, &suite.path_secret())
        };
        let opened = at_once(open);
        assert_eq!(opened.len(), 1, "{opened:?}");
        assert_eq!(at_once(open), opened);
    }
}

fn one_init_key_serves_one_key_package(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    for _ in 0..5 {
        let init = app.generate();
        let packages: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let leaf = app.generate();
                let leaf = app.signed_leaf(&leaf, ALWAYS, "", 0);
                key_package_tbs(&key_package(suite, &init.public_key, &leaf, false))
            })
            .collect();
        let sign = |number: usize| app.sign(&packages[number]);
        let signed = at_once(sign);
        assert_eq!(signed.len(), 1, "{signed:?}");
        assert_eq!(at_once(sign), signed);
    }
}
