//! Evidence of a YubiKey as this version wrote it, with RSA in F9 and an authority between. It is accepted for
//! ever: evidence is kept, and judged again by later versions. OpenSSL and a few lines of Python, after
//! docs/attestation.md, found the same chain, signature and digest.

use super::*;

const EVIDENCE: &[u8] = include_bytes!("../../../../tests/vectors/attestation/yubikey.evidence");
const ROOTS: &[u8] = include_bytes!("../../../../tests/vectors/attestation/yubikey.roots");
const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const DIGEST: &str = "32c259fe4a9f6b872136849a532892b4303b133dba5788159fcd5b86fcb445a7";

fn verdict(envelope: &Envelope) -> Result<Verdict, Refusal> {
    let nonce = hex::decode(NONCE).unwrap();
    let roots = Roots::from_pem(ROOTS).unwrap();
    verify(envelope, &nonce, &roots, now(), None)
}

#[test]
fn what_was_accepted_once_is_accepted_for_ever() {
    let envelope = Envelope::read(EVIDENCE).unwrap();
    assert_eq!(verdict(&envelope), Ok(Verdict::Accepted));
    assert_eq!(envelope.write().as_bytes(), EVIDENCE);
    assert_eq!(hex::encode(envelope.digest()), DIGEST);
}

#[test]
fn no_byte_of_it_is_changed() {
    let honest = Envelope::read(EVIDENCE).unwrap();
    for number in 0..4 {
        for at in 0.. {
            let mut envelope = honest.clone();
            let evidence = evidence(&mut envelope);
            let part = match number {
                0 => &mut evidence.certificates.slot,
                1 => &mut evidence.certificates.f9,
                2 => &mut evidence.certificates.chain[0].0,
                _ => &mut evidence.signature,
            };
            let Some(byte) = part.get_mut(at) else {
                break;
            };
            *byte ^= 1 << (at % 8);
            assert!(verdict(&envelope).is_err(), "part {number}, byte {at}");
        }
    }
}
