//! The two-phase delete of KeyPackages.

use std::sync::Arc;

use mlskeyd_protocol::v1::{Bytes, Record};
use openmls::prelude::*;
use openmls_traits::storage::StorageProvider;

use super::super::two_phase::Pending;
use super::app::{App, Backend, Memory, SUITE, Sqlite, on_both_storages};
use super::model::Model;

on_both_storages! {
    a_refused_welcome_can_be_retried
    a_refused_welcome_can_be_retried_in_a_new_process
    a_joined_welcome_takes_its_key_package_and_init_key
    a_welcome_opens_once_in_a_process_and_again_in_a_new_one
    a_declined_welcome_is_discarded
    the_apps_own_delete_goes_through
    the_apps_own_last_delete_goes_through
    a_delete_on_another_thread_stays_held_back
    a_delete_on_a_thread_that_ended_is_carried_out_at_the_end
    a_key_package_of_last_resort_stays_until_the_app_deletes_it
    a_crash_between_the_epoch_record_and_the_state_keeps_the_key_package
    a_crash_after_the_state_is_made_up_for_when_the_group_is_read
    a_strict_storage_refuses_software_key_packages
}

struct Scene<B: Backend> {
    model: Arc<Model>,
    bob: App<B>,
    package: KeyPackage,
    reference: KeyPackageRef,
    welcome: Welcome,
}

/// Alice has added Bob, who has not seen the Welcome yet.
fn invited<B: Backend>(last_resort: bool) -> Scene<B> {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let bob = App::<B>::new("bob", &model);
    let package = bob.key_package(last_resort);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    if last_resort {
        let record = Record::KeyPackage {
            reference: reference.as_slice().into(),
        };
        model.lock().last_resort.insert(record);
    }
    let mut group = alice.create(b"group");
    let (_, welcome) = alice.add(&mut group, package.clone());
    Scene {
        model,
        bob,
        package,
        reference,
        welcome,
    }
}

impl<B: Backend> Scene<B> {
    fn shown(&self) -> bool {
        let storage = &self.bob.provider.storage;
        storage
            .key_package::<_, KeyPackageBundle>(&self.reference)
            .unwrap()
            .is_some()
    }

    fn stored(&self) -> bool {
        let inner = self.bob.provider.storage.inner();
        inner
            .key_package::<_, KeyPackageBundle>(&self.reference)
            .unwrap()
            .is_some()
    }
}

fn a_refused_welcome_can_be_retried<B: Backend>() {
    let scene = invited::<B>(false);
    scene.model.lock().locked = true;
    assert!(scene.bob.stage(&scene.welcome).is_err());
    assert!(scene.shown());
    scene.model.lock().locked = false;
    let group = scene.bob.join(&scene.welcome);
    assert_eq!(group.members().count(), 2);
    assert!(!scene.stored());
}

fn a_refused_welcome_can_be_retried_in_a_new_process<B: Backend>() {
    let mut scene = invited::<B>(false);
    scene.model.lock().locked = true;
    assert!(scene.bob.stage(&scene.welcome).is_err());
    scene.bob.restart();
    scene.model.lock().locked = false;
    scene.bob.join(&scene.welcome);
    assert!(!scene.stored());
}

fn a_joined_welcome_takes_its_key_package_and_init_key<B: Backend>() {
    let scene = invited::<B>(false);
    assert_eq!(scene.bob.claimed(), 2, "init and leaf key");
    scene.bob.join(&scene.welcome);
    assert!(!scene.stored());
    assert_eq!(scene.bob.claimed(), 1, "the leaf key lives on");
    scene.bob.sweep();
    // Alice's leaf key waits for her own storage.
    assert_eq!(scene.model.claimed("bob").len(), 1);
    assert_eq!(scene.model.lock().destroyed.len(), 1, "the init key");
    let mut group = scene.bob.load(b"group");
    scene.bob.update(&mut group);
}

fn a_welcome_opens_once_in_a_process_and_again_in_a_new_one<B: Backend>() {
    let mut scene = invited::<B>(false);
    drop(scene.bob.stage(&scene.welcome).unwrap());
    assert!(!scene.shown(), "it is hidden after a good open");
    let again = scene.bob.stage(&scene.welcome).unwrap_err();
    assert!(again.contains("NoMatchingKeyPackage"), "{again}");
    assert!(scene.stored());
    scene.bob.restart();
    assert!(scene.shown());
    scene.bob.join(&scene.welcome);
    assert!(!scene.stored());
}

fn a_declined_welcome_is_discarded<B: Backend>() {
    let scene = invited::<B>(false);
    assert!(
        !scene.bob.provider.storage.discard_welcome().unwrap(),
        "none was opened"
    );
    drop(scene.bob.stage(&scene.welcome).unwrap());
    assert!(scene.bob.provider.storage.discard_welcome().unwrap());
    assert!(!scene.stored());
    assert_eq!(scene.bob.claimed(), 0);
    assert!(!scene.bob.provider.storage.discard_welcome().unwrap());
}

fn the_apps_own_delete_goes_through<B: Backend>() {
    let scene = invited::<B>(false);
    scene
        .bob
        .provider
        .storage
        .delete_key_package(&scene.reference)
        .unwrap();
    assert!(scene.stored(), "it may be OpenMLS's, before an open");
    assert!(!scene.shown());
    assert!(!scene.stored());
    assert_eq!(scene.bob.claimed(), 0);
    assert!(scene.bob.stage(&scene.welcome).is_err());
}

fn the_apps_own_last_delete_goes_through<B: Backend>() {
    let mut scene = invited::<B>(false);
    scene
        .bob
        .provider
        .storage
        .delete_key_package(&scene.reference)
        .unwrap();
    // The wrapper is dropped while the database stays open beside it.
    let inner = scene
        .bob
        .backend
        .open(Some(scene.bob.provider.storage.inner()));
    let beside = scene.bob.provider.storage.beside(inner);
    scene.bob.provider.storage = beside;
    assert_eq!(scene.bob.claimed(), 0);
}

fn a_delete_on_another_thread_stays_held_back<B: Backend>() {
    let scene = invited::<B>(false);
    let reference = Bytes(scene.reference.as_slice().to_vec());
    let key = mlskeyd_protocol::v1::KeyId::from_bytes([9; 16]);
    let state = Arc::clone(&scene.bob.provider.storage.state);
    let held = {
        let reference = reference.clone();
        std::thread::spawn(move || state.ledger().pending.hold(reference, key, None))
            .join()
            .unwrap()
    };
    assert!(held);
    assert!(!scene.shown(), "that thread may be opening the Welcome");
    assert!(
        scene.stored(),
        "a call of this thread says nothing about that one"
    );
}

fn a_delete_on_a_thread_that_ended_is_carried_out_at_the_end<B: Backend>() {
    let mut scene = invited::<B>(false);
    let reference = Bytes(scene.reference.as_slice().to_vec());
    let key = mlskeyd_protocol::v1::KeyId::from_bytes([9; 16]);
    let state = Arc::clone(&scene.bob.provider.storage.state);
    std::thread::spawn(move || state.ledger().pending.hold(reference, key, None))
        .join()
        .unwrap();
    assert_eq!(scene.bob.claimed(), 2);
    // The storage is dropped.
    scene.bob.provider = App::<B>::new("other", &scene.model).provider;
    assert_eq!(scene.bob.claimed(), 0);
}

#[test]
fn a_delete_of_which_nothing_is_known_is_not_the_apps() {
    let mut pending = Pending::default();
    for n in 0..=64 {
        let key = mlskeyd_protocol::v1::KeyId::from_bytes([n; 16]);
        assert!(pending.hold(Bytes(vec![n]), key, None));
    }
    let outcomes = pending.outcomes(None);
    assert_eq!(outcomes.own.len(), 64);
    assert!(!outcomes.own.contains(&Bytes(vec![0])));
    assert!(!pending.hides(&Bytes(vec![0])), "it is there again");
}

fn a_key_package_of_last_resort_stays_until_the_app_deletes_it<B: Backend>() {
    let scene = invited::<B>(true);
    assert!(scene.package.last_resort());
    scene.bob.join(&scene.welcome);
    assert!(scene.shown() && scene.stored());
    assert_eq!(scene.bob.claimed(), 2);
    scene
        .bob
        .provider
        .storage
        .delete_key_package(&scene.reference)
        .unwrap();
    assert!(!scene.stored(), "nothing is held back");
    assert_eq!(scene.bob.claimed(), 1, "the leaf key lives on in the group");
}

fn a_crash_between_the_epoch_record_and_the_state_keeps_the_key_package<B: Backend>() {
    let mut scene = invited::<B>(false);
    let staged = scene.bob.stage(&scene.welcome).unwrap();
    // What `into_group` does first, and no more.
    let index = staged.own_leaf_index();
    let bundle: KeyPackageBundle = scene
        .bob
        .provider
        .storage
        .inner()
        .key_package(&scene.reference)
        .unwrap()
        .unwrap();
    let pairs = [super::codecs::leaf_pair(&bundle)];
    let group = GroupId::from_slice(b"group");
    let storage = &scene.bob.provider.storage;
    storage
        .write_encryption_epoch_key_pairs(&group, &GroupEpoch::from(1), index.u32(), &pairs)
        .unwrap();
    drop(staged);
    scene.bob.restart();
    assert!(
        MlsGroup::load(&scene.bob.provider.storage, &group)
            .unwrap()
            .is_none()
    );
    assert!(scene.shown());
    scene.bob.join(&scene.welcome);
    assert!(!scene.stored());
    assert_eq!(scene.bob.claimed(), 1);
}

fn a_crash_after_the_state_is_made_up_for_when_the_group_is_read<B: Backend>() {
    let mut scene = invited::<B>(false);
    // The daemon goes away in the middle, so nothing is known of the join.
    let staged = scene.bob.stage(&scene.welcome).unwrap();
    let bundle: KeyPackageBundle = scene
        .bob
        .provider
        .storage
        .inner()
        .key_package(&scene.reference)
        .unwrap()
        .unwrap();
    staged.into_group(&scene.bob.provider).unwrap();
    let inner = scene.bob.provider.storage.inner();
    inner.write_key_package(&scene.reference, &bundle).unwrap();
    let record = Record::KeyPackage {
        reference: scene.reference.as_slice().into(),
    };
    scene.bob.restart();
    scene.model.joined_again("bob", record, b"group");
    let group = scene.bob.load(b"group");
    assert_eq!(group.epoch().as_u64(), 1);
    assert!(!scene.stored());
    assert_eq!(scene.bob.claimed(), 1);
}

fn a_strict_storage_refuses_software_key_packages<B: Backend>() {
    let model = Arc::new(Model::default());
    let mut bob = App::<B>::new("bob", &model);
    bob.strict();
    bob.key_package(false);
    let software = openmls_rust_crypto::OpenMlsRustCrypto::default();
    let bundle = KeyPackage::builder()
        .build(SUITE, &software, &bob.signer, bob.credential())
        .unwrap();
    let reference = bundle.key_package().hash_ref(software.crypto()).unwrap();
    let error = bob
        .provider
        .storage
        .write_key_package(&reference, &bundle)
        .unwrap_err();
    assert!(
        error.to_string().contains("init key and leaf key"),
        "{error}"
    );
    assert_eq!(model.lock().failures.len(), 1);
    let stored: Option<KeyPackageBundle> = bob
        .provider
        .storage
        .inner()
        .key_package(&reference)
        .unwrap();
    assert!(stored.is_none());
}
