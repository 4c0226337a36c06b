//! Documents from somebody who wants the verifier to stumble.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

static SCENE: LazyLock<Scene> = LazyLock::new(Scene::new);
static HONEST: LazyLock<Envelope> = LazyLock::new(|| SCENE.chip.speech().sign());

/// What is believed of a document is what the TPM said.
fn only_the_truth(document: &[u8]) {
    let Ok(envelope) = Envelope::read(document) else {
        return;
    };
    if let Ok(verdict) = SCENE.verdict(&envelope) {
        assert_eq!(verdict, Verdict::AkNotBound);
        assert_eq!(envelope, *HONEST);
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
        part in 0_usize..6,
        at: prop::sample::Index,
        bytes in prop::collection::vec(any::<u8>(), 0..4),
        taken in 0_usize..4,
    ) {
        let mut envelope = HONEST.clone();
        let Evidence::Tpm2(tpm) = &mut envelope.evidence else {
            panic!("it is of a TPM");
        };
        let part = match part {
            0 => &mut tpm.keys.ek_certificate,
            1 => &mut tpm.keys.ek_public,
            2 => &mut tpm.keys.ak_public,
            3 => &mut tpm.keys.key_public,
            4 => &mut tpm.certification,
            _ => &mut tpm.signature,
        };
        let at = at.index(part.len());
        let end = (at + taken).min(part.len());
        part.splice(at..end, bytes);
        only_the_truth(envelope.write().as_bytes());
    }

    #[test]
    fn no_bytes_make_a_reader_stumble(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        assert!(Envelope::read(&bytes).is_err());
        assert!(Challenge::read(&bytes).is_err());
        assert!(Secret::read(&bytes).is_err());
        assert!(Response::read(&bytes).is_err());
        assert!(Roots::from_pem(&bytes).is_err());
        let mut envelope = HONEST.clone();
        let Evidence::Tpm2(tpm) = &mut envelope.evidence else {
            panic!("it is of a TPM");
        };
        tpm.keys.ek_certificate = bytes;
        assert_eq!(SCENE.verdict(&envelope), Err("ek-certificate"));
    }
}

#[test]
fn a_document_is_read_whole_and_says_what_it_is() {
    let document = HONEST.write();
    let public_key = hex::encode(&HONEST.claims.public_key);
    let refused = |document: &str| Envelope::read(document.as_bytes()).unwrap_err().to_string();
    let with = |from: &str, to: &str| {
        assert!(document.contains(from), "{from}");
        refused(&document.replacen(from, to, 1))
    };
    assert!(Envelope::read(document.as_bytes()).is_ok());
    let other = with(
        "mlskeyd attestation evidence",
        "mlskeyd attestation challenge",
    );
    assert!(other.contains("of format"), "{other}");
    let newer = with("\"version\": 1", "\"version\": 3");
    assert!(newer.contains("version 3"), "{newer}");
    for (from, to) in [
        // Something unknown on each level.
        ("\"content\"", "\"more\": 1, \"content\""),
        ("\"claims\"", "\"more\": 1, \"claims\""),
        ("\"uid\"", "\"more\": 1, \"uid\""),
        ("\"tpm2\"", "\"yubikey\": {}, \"tpm2\""),
        ("\"keys\"", "\"more\": 1, \"keys\""),
        ("\"ek_chain\"", "\"more\": 1, \"ek_chain\""),
        // Something twice.
        ("\"uid\": 1000", "\"uid\": 1000, \"uid\": 0"),
        // A version that does not know it, or knows more.
        ("\"version\": 1", "\"version\": 0"),
        ("\"version\": 1", "\"version\": 2"),
        ("\"tier\": \"hardware\"", "\"tier\": \"best\""),
        ("\"uid\": 1000", "\"uid\": -1"),
        ("\"default\"", "\"\""),
        ("\"default\"", "\"a\\nb\""),
        ("alice@bank.example", &"a".repeat(256)),
        (&public_key, ""),
        (&public_key, &"04".repeat(134)),
        (&hex::encode(NONCE), "4242"),
        (&hex::encode(NONCE), &"42".repeat(65)),
        (
            &hex::encode(NONCE),
            "no hexadecimal digits at all, but long",
        ),
    ] {
        with(from, to);
    }
    refused(&(document.clone() + "{}"));
    refused(&document[..document.len() - 3]);
    let long = document + &" ".repeat(MAX_DOCUMENT);
    assert!(refused(&long).contains("longer"));
}
