//! Documents from somebody who wants the verifier to stumble.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

static CARD: LazyLock<Card> = LazyLock::new(Card::new);
static HONEST: LazyLock<Envelope> = LazyLock::new(|| CARD.envelope());

/// What is believed of a document is what the YubiKey and the key said.
fn only_the_truth(document: &[u8]) {
    let Ok(envelope) = Envelope::read(document) else {
        return;
    };
    if let Ok(verdict) = CARD.judge(&envelope) {
        assert_eq!(verdict, Verdict::Accepted);
        assert_eq!(envelope, *HONEST);
    }
}

fn part(evidence: &mut YubiKeyEvidence, number: usize) -> &mut Vec<u8> {
    match number {
        0 => &mut evidence.certificates.slot,
        1 => &mut evidence.certificates.f9,
        _ => &mut evidence.signature,
    }
}

proptest! {
    #[test]
    fn a_changed_document_is_refused(at: prop::sample::Index, byte: u8) {
        let mut document = HONEST.write().into_bytes();
        let at = at.index(document.len());
        document[at] = byte;
        only_the_truth(&document);
    }

    #[test]
    fn a_changed_part_is_refused(
        number in 0_usize..3,
        at: prop::sample::Index,
        bytes in prop::collection::vec(any::<u8>(), 0..4),
        taken in 0_usize..4,
    ) {
        let mut envelope = HONEST.clone();
        let part = part(evidence(&mut envelope), number);
        let at = at.index(part.len());
        let end = (at + taken).min(part.len());
        part.splice(at..end, bytes);
        only_the_truth(envelope.write().as_bytes());
    }

    #[test]
    fn no_bytes_make_a_reader_stumble(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut envelope = HONEST.clone();
        evidence(&mut envelope).certificates.slot = bytes.clone();
        prop_assert_eq!(CARD.judge(&envelope), Err("slot-certificate"));
        let mut envelope = HONEST.clone();
        evidence(&mut envelope).certificates.f9 = bytes.clone();
        prop_assert_eq!(CARD.judge(&envelope), Err("f9-certificate"));
        let certificates = Certificates { slot: bytes, ..CARD.certificates() };
        prop_assert!(certificates.attested().is_err());
    }
}

/// The same bytes are hashed and signed nowhere else, so no bit of them may differ.
#[test]
fn no_bit_of_it_is_changed() {
    for number in 0..3 {
        let length = part(evidence(&mut HONEST.clone()), number).len();
        for at in 0..length {
            let mut envelope = HONEST.clone();
            part(evidence(&mut envelope), number)[at] ^= 1 << (at % 8);
            assert!(CARD.judge(&envelope).is_err(), "part {number}, byte {at}");
        }
    }
}

/// What is read of a certificate is of a slot that there is, whatever its bytes are.
#[test]
fn a_changed_certificate_is_read_or_refused() {
    let mut read = 0;
    for at in 0..CARD.slot.len() {
        for bit in 0..8 {
            let mut certificates = CARD.certificates();
            certificates.slot[at] ^= 1 << bit;
            if let Ok(said) = certificates.attested() {
                assert!((0x82..=0x9e).contains(&said.slot), "{said:?}");
                read += 1;
            }
        }
    }
    assert!(read > 0, "its key and its signature are not looked at here");
}

#[test]
fn a_document_has_nothing_else_in_it() {
    let document = HONEST.write();
    for (from, to) in [
        ("\"version\": 2", "\"version\": 1"),
        ("\"version\": 2", "\"version\": 3"),
        ("\"yubikey\"", "\"more\": 1, \"yubikey\""),
        ("\"yubikey\"", "\"tpm2\": {}, \"yubikey\""),
        ("\"certificates\"", "\"more\": 1, \"certificates\""),
        ("\"slot\"", "\"more\": 1, \"slot\""),
        ("\"slot\"", "\"slot\": \"00\", \"slot\""),
        ("\"signature\"", "\"signature\": \"00\", \"signature\""),
        ("\"chain\": []", "\"chain\": [\"0\"]"),
        ("\"chain\": []", "\"chain\": null"),
        ("\"chain\": []", "\"more\": []"),
    ] {
        assert!(document.contains(from), "{from}");
        let changed = document.replacen(from, to, 1);
        assert!(Envelope::read(changed.as_bytes()).is_err(), "{to}");
    }
}

#[test]
fn a_certificate_is_no_longer_than_any() {
    for number in 0..2 {
        for (length, is_one) in [(4096, true), (4097, false)] {
            let mut envelope = HONEST.clone();
            part(evidence(&mut envelope), number).resize(length, 0);
            let document = envelope.write();
            assert_eq!(Envelope::read(document.as_bytes()).is_ok(), is_one);
        }
    }
}
