//! What waits for a person is told that person's desktop: on a YubiKey that is pulled, locked
//! and to be touched.

use std::collections::BTreeSet;

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{CreateIdentity, Credential, Placement, SignatureScheme};
use mlskeyd_tests::member::client;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Bus, Daemon, Options, PIN, Stage, YubiKeys, with_input};
use mlskeyd_virtual_yubikey::control::FingerOrder;
use zbus::OwnedObjectPath;

use crate::scene::{Guest, NAME, ROOT, member};

/// Reads signals until one of this name comes; of those before it there are only these.
fn until(guest: &mut Guest, wanted: &str, before: &[&str]) -> zbus::Message {
    loop {
        let signal = guest.signal();
        match member(&signal) {
            name if name == wanted => return signal,
            name => assert!(before.contains(&name.as_str()), "{name} before {wanted}"),
        }
    }
}

/// Reads changes of the device until it is in this state.
fn until_state(guest: &mut Guest, path: &str, wanted: &str) {
    let state = |guest: &Guest| {
        let state = guest.get(path, "org.mlskeyd.Custody1.Device", "State");
        String::try_from(state).unwrap()
    };
    while state(guest) != wanted {
        until(guest, "PropertiesChanged", &[]);
    }
}

#[test]
fn a_desktop_is_told_what_waits_for_its_person() {
    let stage = Stage::new(programs!());
    let bus = Bus::start(&stage);
    let mut cards = YubiKeys::new(&stage);
    let card = cards.make(1234, [5, 4, 3]);
    cards.insert(card, 0);
    cards.provision(&["--consent", "9e"]).unwrap();
    let more = "management_key = \"on-card\"\nconsent_slot = \"9e\"\n\
                [policy]\nconsent_device = \"yubikey\"\n";
    let options = Options {
        extra: format!("{}\n{}", YubiKeys::device("yubikey", more), bus.section()),
        pcscd: Some(cards.socket().to_owned()),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let mut guest = Guest::new(&bus.address());
    guest.call(ROOT, NAME, "Subscribe", &()).unwrap();
    let path = format!("{ROOT}/devices/yubikey");
    until_state(&mut guest, &path, "locked");

    // What it needs is told while it waits, and that it does not wait any more.
    cards.finger(card, FingerOrder::Waits);
    let app = client(&daemon.socket());
    let request = CreateIdentity {
        name: "alice".to_owned(),
        credential: Credential::Basic(b"alice".as_slice().into()),
        scheme: SignatureScheme::EcdsaP256Sha256,
        placement: Placement {
            device: Some("yubikey".to_owned()),
            tier: None,
        },
    };
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| app.create_identity(request, &Call::default()));
        let read = |signal: &zbus::Message| -> (u64, OwnedObjectPath, String) {
            signal.body().deserialize().unwrap()
        };
        // A person does what is asked for, in whichever order that is.
        let (mut waiting, mut told) = (BTreeSet::new(), BTreeSet::new());
        while told.len() < 2 || !waiting.is_empty() {
            let signal = guest.signal();
            match member(&signal).as_str() {
                "WaitingEnded" => assert!(waiting.remove(&signal.body().deserialize().unwrap())),
                "PropertiesChanged" => {}
                what => {
                    let (id, device, text) = read(&signal);
                    assert_eq!(device.as_str(), path);
                    assert!(text.contains("CreateIdentity"), "{text}");
                    assert!(waiting.insert(id));
                    told.insert(what.to_owned());
                    if what == "WaitingForTouch" {
                        cards.finger(card, FingerOrder::Now);
                    } else {
                        let unlock = daemon.ctl_command(&["unlock", "yubikey"]);
                        assert!(with_input(unlock, &format!("{PIN}\n")).status.success());
                    }
                }
            }
        }
        assert!(told.contains("WaitingForTouch") && told.contains("WaitingForPin"));
        creating.join().unwrap().unwrap();
    });
    until(&mut guest, "InterfacesAdded", &["PropertiesChanged"]);
    until(&mut guest, "InterfacesAdded", &["PropertiesChanged"]);
    let lock = guest.call(&path, "org.mlskeyd.Custody1.Device", "Lock", &());
    lock.unwrap();
    until_state(&mut guest, &path, "locked");
    cards.remove(0);
    until_state(&mut guest, &path, "absent");
}
