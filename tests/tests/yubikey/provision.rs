//! Getting a card ready.

use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{PIN, Stage, YubiKeys};

use super::bench::{NEW, OLD};

#[test]
fn a_card_from_the_factory_gets_ready_and_again_nothing_changes() {
    for version in [OLD, NEW] {
        let stage = Stage::new(programs!());
        let mut cards = YubiKeys::new(&stage);
        let card = cards.make(1234, version);
        cards.insert(card, 0);
        let signatures = ["--signature", "9a:p256,82:p384"];
        let ready = cards.provision(&signatures).unwrap();
        assert_eq!(ready["serial"], "1234");
        let keys = ready["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 3);
        assert!(keys.iter().all(|key| key["was_there"] == false), "{ready}");
        let before = cards.snapshot(card);
        let again = cards.provision_with(&signatures, &format!("{PIN}\n"));
        let again = again.unwrap();
        let keys = again["keys"].as_array().unwrap();
        assert!(keys.iter().all(|key| key["was_there"] == true), "{again}");
        assert_eq!(cards.snapshot(card), before);
    }
}
