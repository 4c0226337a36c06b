//! From a TPM's certificate to a root.

use super::authority::{EK_CERTIFICATE, Order, SERVER, spki};
use super::*;

/// The verdict on a TPM whose certificate differs like this from a good one.
fn certified(change: impl FnOnce(&mut Order)) -> Result<Verdict, &'static str> {
    let mut scene = Scene::new();
    let mut order = Order::ek(spki(&scene.chip.ek.public_key()));
    change(&mut order);
    scene.chip.ek_certificate = scene.maker.issue(&order);
    scene.verdict(&scene.chip.speech().sign())
}

#[test]
fn a_certificate_is_for_endorsement_keys_and_valid() {
    let good = Ok(Verdict::AkNotBound);
    assert_eq!(certified(|_| {}), good);
    assert_eq!(certified(|o| o.usages = vec![SERVER, EK_CERTIFICATE]), good);
    assert_eq!(certified(|o| o.usages = vec![SERVER]), Err("ek-usage"));
    assert_eq!(certified(|o| o.usages = Vec::new()), Err("ek-usage"));
    assert_eq!(certified(|o| o.years = (-2, -1)), Err("ek-validity"));
    assert_eq!(certified(|o| o.years = (1, 2)), Err("ek-validity"));
    assert_eq!(certified(|o| o.authority = Some(None)), Err("ek-chain"));
    assert_eq!(certified(|o| o.unknown = Some(false)), good);
    assert_eq!(certified(|o| o.unknown = Some(true)), Err("ek-certificate"));
}

#[test]
fn another_makers_root_vouches_for_nothing() {
    let mut scene = Scene::new();
    let envelope = scene.chip.speech().sign();
    // Of the same name, with another key.
    for name in ["another", "maker"] {
        let other = Authority::root(name, Signing::p256());
        scene.roots = Roots::from_pem(other.pem().as_bytes()).unwrap();
        assert_eq!(scene.verdict(&envelope), Err("ek-chain"), "{name}");
    }
    // Among others, the right one counts.
    let other = Authority::root("another", Signing::p256());
    let both = other.pem() + &scene.maker.pem();
    scene.roots = Roots::from_pem(both.as_bytes()).unwrap();
    assert_eq!(scene.verdict(&envelope), Ok(Verdict::AkNotBound));
}

/// The verdict on a TPM that is certified by an authority below the root, whose certificate differs like
/// this from a good one.
fn by_intermediate(change: impl FnOnce(&mut Order)) -> Result<Verdict, &'static str> {
    let scene = Scene::new();
    let below = scene.maker.below("plant", change);
    let mut chip = Chip::of(&below);
    chip.chain = vec![below.certificate];
    scene.verdict(&chip.speech().sign())
}

#[test]
fn what_is_between_a_tpm_and_its_root_is_an_authority() {
    let good = Ok(Verdict::AkNotBound);
    assert_eq!(by_intermediate(|_| {}), good);
    assert_eq!(by_intermediate(|o| o.usages = vec![EK_CERTIFICATE]), good);
    let refused = by_intermediate(|o| o.usages = vec![SERVER]);
    assert_eq!(refused, Err("ek-usage"));
    assert_eq!(by_intermediate(|o| o.authority = None), Err("ek-chain"));
    assert_eq!(by_intermediate(|o| o.years = (-2, -1)), Err("ek-validity"));

    // Absent from the evidence, it can be a root of the verifier's.
    let mut scene = Scene::new();
    let below = scene.maker.below("plant", |_| {});
    let chip = Chip::of(&below);
    assert_eq!(scene.verdict(&chip.speech().sign()), Err("ek-chain"));
    scene.roots = Roots::from_pem(below.pem().as_bytes()).unwrap();
    assert_eq!(scene.verdict(&chip.speech().sign()), good);
}

#[test]
fn an_authority_vouches_for_no_more_below_it_than_it_may() {
    let scene = Scene::new();
    for (most, verdict) in [(None, Ok(Verdict::AkNotBound)), (Some(0), Err("ek-chain"))] {
        let first = scene.maker.below("first", |o| o.authority = Some(most));
        let second = first.below("second", |_| {});
        let mut chip = Chip::of(&second);
        chip.chain = vec![second.certificate, first.certificate];
        assert_eq!(scene.verdict(&chip.speech().sign()), verdict, "{most:?}");
    }
}

#[test]
fn a_chain_is_no_longer_than_any_makers() {
    let mut scene = Scene::new();
    let other = scene.maker.below("other", |_| {});
    for (length, is_one) in [(MAX_INTERMEDIATES, true), (MAX_INTERMEDIATES + 1, false)] {
        scene.chip.chain = vec![other.certificate.clone(); length];
        let envelope = scene.chip.speech().sign().write();
        assert_eq!(
            Envelope::read(envelope.as_bytes()).is_ok(),
            is_one,
            "{length}"
        );
    }
}

#[test]
fn makers_sign_on_curves_up_to_p521() {
    use rand_core::OsRng;
    let mut scene = Scene::new();
    for key in [
        Signing::P384(p384::ecdsa::SigningKey::random(&mut OsRng)),
        Signing::P521(p521::ecdsa::SigningKey::random(&mut OsRng)),
    ] {
        let maker = Authority::root("maker", key);
        scene.roots = Roots::from_pem(maker.pem().as_bytes()).unwrap();
        let chip = Chip::of(&maker);
        let mut speech = chip.speech();
        let verdict = scene.verdict(&speech.sign());
        assert_eq!(verdict, Ok(Verdict::AkNotBound));
        // The last byte is the signature's.
        *speech.ek_certificate.last_mut().unwrap() ^= 1;
        assert_eq!(scene.verdict(&speech.sign()), Err("ek-chain"));
    }
}

#[test]
fn a_file_without_roots_is_not_taken_for_one() {
    let pem = Scene::new().maker.pem();
    assert!(Roots::from_pem(pem.as_bytes()).is_ok());
    for nothing in [
        "",
        "roots",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    ] {
        assert_eq!(
            Roots::from_pem(nothing.as_bytes()).unwrap_err(),
            RootsError::None
        );
    }
    let cut = &pem[..pem.len() - 40];
    let refused = Roots::from_pem(cut.as_bytes()).unwrap_err();
    assert!(matches!(refused, RootsError::Pem(_)), "{refused}");
    let broken = pem.clone() + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let refused = Roots::from_pem(broken.as_bytes()).unwrap_err();
    assert!(refused.to_string().contains("number 2"), "{refused}");
}
