//! What a certificate of a key has to say, and cannot say otherwise.

use super::*;

const ACCEPTED: Result<Verdict, &str> = Ok(Verdict::Accepted);

/// The verdict on a key whose certificate differs like this from a good one.
fn certified(change: impl FnOnce(&mut Order)) -> Result<Verdict, &'static str> {
    let mut card = Card::new();
    let mut order = certificate_of(&card.key, "9c");
    change(&mut order);
    card.slot = card.f9.issue(&order);
    card.verdict()
}

/// With this in the place of an extension's value; `None`: without it.
fn with(id: &str, value: Option<&[u8]>) -> Result<Verdict, &'static str> {
    certified(|order| {
        let extensions = order.extensions.as_mut().unwrap();
        let at = extensions
            .iter()
            .position(|one| one.extn_id.to_string() == id);
        match value {
            None => drop(extensions.remove(at.unwrap())),
            Some(value) => extensions[at.unwrap()] = extension(id, false, value.to_vec()),
        }
    })
}

#[test]
fn firmware_serial_number_and_policies_are_there() {
    let missing = Err("slot-extension");
    assert_eq!(with(FIRMWARE, None), missing);
    assert_eq!(with(SERIAL, None), missing);
    assert_eq!(with(POLICIES, None), missing);
    let none = certified(|order| {
        order.extensions = Some(vec![extension(BASIC_CONSTRAINTS, true, vec![0x30, 0])]);
    });
    assert_eq!(none, missing);
    // YubiKeys 4 do not say it.
    assert_eq!(with(FORM_FACTOR, None), ACCEPTED);
}

#[test]
fn they_have_their_one_form() {
    let good: [(&str, &[u8]); 8] = [
        (FIRMWARE, &[4, 3, 7]),
        (SERIAL, &[2, 1, 0]),
        (SERIAL, &[2, 5, 0, 0xff, 0xff, 0xff, 0xff]),
        (POLICIES, &[1, 2]),
        (POLICIES, &[3, 3]),
        (POLICIES, &[5, 1]),
        (FORM_FACTOR, &[0x81]),
        (FORM_FACTOR, &[0x3f]),
    ];
    for (id, value) in good {
        assert_eq!(with(id, Some(value)), ACCEPTED, "{id} {value:?}");
    }
    let odd: [(&str, &[u8]); 22] = [
        (FIRMWARE, &[]),
        (FIRMWARE, &[5, 7]),
        (FIRMWARE, &[5, 7, 4, 0]),
        (FIRMWARE, &[4, 3, 5, 7, 4]),
        (SERIAL, &[]),
        (SERIAL, &[2, 0]),
        (SERIAL, &[2, 1, 0x80]),
        (SERIAL, &[2, 2, 0, 1]),
        (SERIAL, &[2, 1, 1, 0]),
        (SERIAL, &[2, 2, 1]),
        (SERIAL, &[4, 1, 1]),
        (SERIAL, &[2, 5, 1, 0, 0, 0, 0]),
        (SERIAL, &[0, 0, 0, 1]),
        (POLICIES, &[]),
        (POLICIES, &[2]),
        (POLICIES, &[2, 1, 0]),
        (POLICIES, &[0, 1]),
        (POLICIES, &[6, 1]),
        (POLICIES, &[2, 0]),
        (POLICIES, &[2, 4]),
        (FORM_FACTOR, &[]),
        (FORM_FACTOR, &[1, 1]),
    ];
    for (id, value) in odd {
        assert_eq!(
            with(id, Some(value)),
            Err("slot-extension"),
            "{id} {value:?}"
        );
    }
}

#[test]
fn no_extension_is_there_twice() {
    for (id, value) in [
        (POLICIES, vec![3, 2]),
        (POLICIES, vec![2, 1]),
        (FIRMWARE, vec![5, 7, 4]),
        (FORM_FACTOR, vec![1]),
    ] {
        for first in [true, false] {
            let verdict = certified(|order| {
                let extensions = order.extensions.as_mut().unwrap();
                let at = if first { 0 } else { extensions.len() };
                extensions.insert(at, extension(id, false, value.clone()));
            });
            assert_eq!(verdict, Err("slot-extension"), "{id}");
        }
    }
    // Also one that nobody knows.
    let unknown = |times, critical| {
        certified(|order| {
            for _ in 0..times {
                let one = extension("1.3.6.1.4.1.41482.3.99", critical, vec![1]);
                order.extensions.as_mut().unwrap().push(one);
            }
        })
    };
    assert_eq!(unknown(1, false), ACCEPTED);
    assert_eq!(unknown(2, false), Err("slot-extension"));
    assert_eq!(unknown(1, true), Err("slot-certificate"));
}

#[test]
fn the_subject_is_that_of_a_slot() {
    let named = |subject: &str| certified(|order| order.subject = subject.to_owned());
    let of = |slot: &str| named(&format!("CN=YubiKey PIV Attestation {slot}"));
    for slot in ["9a", "9c", "9d", "9e", "82", "8f", "95", "9A"] {
        assert_eq!(of(slot), ACCEPTED, "{slot}");
    }
    for slot in [
        "f9", "9b", "81", "96", "80", "00", "", "9", "9c ", "09c", "\\+9", "0x9c", "9c9c", "9g",
    ] {
        assert_eq!(of(slot), Err("slot"), "{slot:?}");
    }
    for subject in [
        "",
        "CN=Yubico PIV Attestation 9c",
        "CN=yubikey piv attestation 9c",
        "O=YubiKey PIV Attestation 9c",
        "CN=YubiKey PIV Attestation 9c,O=Bank",
        "CN=YubiKey PIV Attestation 9c+O=Bank",
        "CN=YubiKey PIV Attestation 9c,CN=YubiKey PIV Attestation 9c",
        "CN=YubiKey OPGP Attestation SIG",
    ] {
        assert_eq!(named(subject), Err("slot"), "{subject}");
    }
}

#[test]
fn it_is_valid_and_for_no_other_use() {
    assert_eq!(certified(|o| o.years = (-2, -1)), Err("slot-validity"));
    assert_eq!(certified(|o| o.years = (1, 2)), Err("slot-validity"));
    assert_eq!(certified(|o| o.years = (2, -2)), Err("slot-validity"));
    // The use of a server in TLS.
    let used = certified(|order| {
        let uses = hex::decode("300a06082b06010505070301").unwrap();
        let uses = extension("2.5.29.37", false, uses);
        order.extensions.as_mut().unwrap().push(uses);
    });
    assert_eq!(used, Err("slot-certificate"));
}

#[test]
fn it_is_read_whole() {
    let card = Card::new();
    let parts: [fn(&mut Certificates) -> &mut Vec<u8>; 2] = [|c| &mut c.slot, |c| &mut c.f9];
    for (part, reason) in parts
        .into_iter()
        .zip(["slot-certificate", "f9-certificate"])
    {
        let changes: [fn(&mut Vec<u8>); 4] = [
            |der| der.push(0),
            |der| der.extend_from_within(..),
            |der| der.truncate(der.len() - 1),
            Vec::clear,
        ];
        for change in changes {
            let mut certificates = card.certificates();
            change(part(&mut certificates));
            let envelope = signed(card.claims(), certificates, &card.key);
            assert_eq!(card.judge(&envelope), Err(reason));
        }
    }
}
