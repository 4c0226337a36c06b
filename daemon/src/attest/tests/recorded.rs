//! What real TPMs said (swtpm), as this version wrote it. All of it is accepted for ever: evidence is kept,
//! and judged again by later versions.

use proptest::prelude::*;

use super::*;

/// All documents of one attestation.
struct Recorded {
    evidence: &'static [u8],
    challenge: &'static [u8],
    secret: &'static [u8],
    response: &'static [u8],
    roots: &'static [u8],
}

macro_rules! recorded {
    ($name:literal) => {
        Recorded {
            evidence: recorded!($name, "evidence"),
            challenge: recorded!($name, "challenge"),
            secret: recorded!($name, "secret"),
            response: recorded!($name, "response"),
            roots: recorded!($name, "roots"),
        }
    };
    ($name:literal, $part:literal) => {
        include_bytes!(concat!(
            "../../../tests/vectors/attestation/",
            $name,
            ".",
            $part
        ))
    };
}

/// With an RSA endorsement key, and with one on P-256 whose chain is in the TPM.
const RECORDED: [Recorded; 2] = [recorded!("rsa"), recorded!("p256")];

const RECORDED_NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

impl Recorded {
    fn verdict(&self, envelope: &Envelope) -> Result<Verdict, Refusal> {
        let roots = Roots::from_pem(self.roots).unwrap();
        let secret = Secret::read(self.secret).unwrap();
        let response = Response::read(self.response).unwrap();
        let activation = Some(Activation {
            secret: &secret,
            response: &response,
        });
        let nonce = hex::decode(RECORDED_NONCE).unwrap();
        verify(envelope, &nonce, &roots, now(), activation)
    }
}

#[test]
fn what_was_accepted_once_is_accepted_for_ever() {
    for recorded in RECORDED {
        let envelope = Envelope::read(recorded.evidence).unwrap();
        assert_eq!(recorded.verdict(&envelope), Ok(Verdict::Accepted));
        assert_eq!(envelope.write().as_bytes(), recorded.evidence);
        let challenge = Challenge::read(recorded.challenge).unwrap();
        assert_eq!(challenge.write().as_bytes(), recorded.challenge);
        assert_eq!(challenge.evidence, envelope.digest());
        let secret = Secret::read(recorded.secret).unwrap();
        assert_eq!(secret.write().as_bytes(), recorded.secret);
        let response = Response::read(recorded.response).unwrap();
        assert_eq!(response.write().as_bytes(), recorded.response);
    }
}

#[test]
fn the_kinds_of_endorsement_keys_are_told_apart() {
    let kinds = RECORDED.map(|recorded| {
        let DeviceChallenge::Tpm2(asked) = Challenge::read(recorded.challenge).unwrap().challenge;
        let Evidence::Tpm2(evidence) = Envelope::read(recorded.evidence).unwrap().evidence else {
            panic!("it is of a TPM");
        };
        assert_eq!(
            tpm::endorsement::kind(&evidence.keys.ek_public),
            Some(asked.ek)
        );
        asked.ek
    });
    assert_eq!(kinds, [tpm::EkKind::Rsa2048, tpm::EkKind::EccP256]);
}

proptest! {
    #[test]
    fn a_changed_part_of_it_is_refused(
        recorded in 0_usize..2,
        part in 0_usize..7,
        at: prop::sample::Index,
        bytes in prop::collection::vec(any::<u8>(), 0..4),
        taken in 0_usize..4,
    ) {
        let recorded = &RECORDED[recorded];
        let honest = Envelope::read(recorded.evidence).unwrap();
        let mut envelope = honest.clone();
        let Evidence::Tpm2(tpm) = &mut envelope.evidence else {
            panic!("it is of a TPM");
        };
        let part = match part {
            0 => &mut tpm.keys.ek_certificate,
            1 => &mut tpm.keys.ek_public,
            2 => &mut tpm.keys.ak_public,
            3 => &mut tpm.keys.key_public,
            4 => &mut tpm.certification,
            5 => &mut tpm.signature,
            _ => match tpm.keys.ek_chain.first_mut() {
                Some(certificate) => &mut certificate.0,
                None => return Ok(()),
            },
        };
        let at = at.index(part.len());
        let end = (at + taken).min(part.len());
        part.splice(at..end, bytes);
        let changed = envelope != honest;
        prop_assert_eq!(recorded.verdict(&envelope).is_err(), changed);
    }
}
