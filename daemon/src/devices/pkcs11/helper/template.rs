//! Templates of objects, and names that PKCS#11 writes in DER.

use std::ffi::c_ulong;

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use mlskeyd_protocol::v1::{Algorithm, Kem, SignatureScheme};

/// `1.2.840.10045.3.1.7`, secp256r1.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// `1.3.132.0.34`, secp384r1.
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
/// `1.3.101.112`, Ed25519 (RFC 8410).
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// `1.3.101.110`, X25519 (RFC 8410).
const X25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x6e];

/// The curve of an algorithm, as CKA_EC_PARAMS names it.
pub(super) const fn curve(algorithm: Algorithm) -> &'static [u8] {
    match algorithm {
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => P256,
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemP384) => P384,
        Algorithm::Signature(SignatureScheme::Ed25519) => ED25519,
        Algorithm::Hpke(Kem::DhKemX25519) => X25519,
    }
}

/// The other names that programs give the curve of a signature key in
/// CKA_EC_PARAMS: a PrintableString (PKCS#11 3.1, 6.3.3), or an older OID.
pub(super) const fn other_names(algorithm: Algorithm) -> &'static [&'static [u8]] {
    match algorithm {
        Algorithm::Signature(SignatureScheme::Ed25519) => &[
            b"\x13\x0cedwards25519",
            // 1.3.6.1.4.1.11591.15.1
            &[
                0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01,
            ],
        ],
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256) => {
            &[b"\x13\x09secp256r1", b"\x13\x0aprime256v1"]
        }
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384) => &[b"\x13\x09secp384r1"],
        Algorithm::Hpke(_) => &[],
    }
}

/// The label of all objects of a generation: by it they are found and
/// destroyed.
pub(super) fn label(generation: [u8; 16]) -> Attribute {
    let name = format!("mlskeyd {:032x}", u128::from_be_bytes(generation));
    Attribute::Label(name.into_bytes())
}

/// Is it such a label?
pub(super) fn is_label_of_ours(label: &str) -> bool {
    label.starts_with("mlskeyd ")
}

/// The CKA_ID of a generation's key that seals.
pub(super) fn sealing_id(generation: [u8; 16]) -> Vec<u8> {
    [generation.as_slice(), b" seals"].concat()
}

/// May a private key leave the token?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    /// Never.
    Never,
    /// Wrapped by its generation's key.
    Wrapped,
}

/// Where an object is put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the token.
    Token,
    /// In the session, and gone with it.
    Session,
}

/// How an unwrapped key is guarded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Guarded {
    sensitive: bool,
    extractable: bool,
}

impl Guarded {
    /// It cannot be read.
    pub(super) const WHOLLY: Self = Self {
        sensitive: true,
        extractable: false,
    };

    /// It can be read, or wrapped by whoever asks.
    pub(super) const NOT_WHOLLY: [Self; 3] = [
        Self {
            sensitive: false,
            extractable: true,
        },
        Self {
            sensitive: true,
            extractable: true,
        },
        Self {
            sensitive: false,
            extractable: false,
        },
    ];
}

/// The public half: only read, then destroyed. CKA_VERIFY is left out, for
/// tpm2-pkcs11 takes it for the opposite of what the private half says.
pub(super) fn public_key(
    algorithm: Algorithm,
    generation: [u8; 16],
    place: Place,
) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(place == Place::Token),
        Attribute::Private(false),
        Attribute::EcParams(curve(algorithm).to_vec()),
    ];
    if place == Place::Token {
        // If nobody gets to destroying it, it ends with its generation.
        template.push(label(generation));
    }
    template
}

/// The private half: an object of the token if it never leaves it, else one of
/// the session.
pub(super) fn private_key(
    algorithm: Algorithm,
    key: [u8; 16],
    generation: [u8; 16],
    leaves: Leaves,
    place: Place,
) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(place == Place::Token),
        Attribute::Sensitive(true),
        Attribute::Extractable(leaves == Leaves::Wrapped),
        Attribute::Id(key.to_vec()),
        label(generation),
    ];
    if place == Place::Token {
        // A copy, or another label, would outlive its generation.
        template.push(Attribute::Modifiable(false));
        template.push(Attribute::Copyable(false));
    }
    template.extend(private_uses(algorithm));
    template
}

/// What a private key is for, and what it never does. (No mechanism decrypts with
/// such a key, and tpm2-pkcs11 fails where that is said.)
fn private_uses(algorithm: Algorithm) -> Vec<Attribute> {
    let signs = matches!(algorithm, Algorithm::Signature(_));
    vec![
        Attribute::Private(true),
        Attribute::Sign(signs),
        Attribute::Derive(!signs),
        Attribute::Unwrap(false),
    ]
}

/// Finds a key that somebody else made.
pub(super) fn adopted(label: &str, id: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(id.to_vec()),
    ]
}

/// A wrapped key as it is unwrapped: an object of the session.
pub(super) fn unwrapped(
    algorithm: Algorithm,
    key_type: KeyType,
    guarded: Guarded,
) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(key_type),
        Attribute::Token(false),
        Attribute::Sensitive(guarded.sensitive),
        Attribute::Extractable(guarded.extractable),
    ];
    template.extend(private_uses(algorithm));
    template
}

/// What an AES key does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Wrap,
    Encrypt,
}

fn aes_key(generation: [u8; 16], id: Vec<u8>, place: Place, does: Does) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Token(place == Place::Token),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        // A copy could be made to do something else.
        Attribute::Copyable(false),
        Attribute::Encrypt(does == Does::Encrypt),
        Attribute::Decrypt(does == Does::Encrypt),
        Attribute::Wrap(does == Does::Wrap),
        Attribute::Unwrap(does == Does::Wrap),
        Attribute::Id(id),
        label(generation),
    ]
}

/// Works with the template of the key that wraps a generation: it does nothing
/// else, and if that is `enforced` what it unwraps does not leave the token.
pub(super) fn with_wrapping_key<T>(
    generation: [u8; 16],
    place: Place,
    enforced: bool,
    work: impl FnOnce(&[Attribute]) -> T,
) -> T {
    let mut template = aes_key(generation, generation.to_vec(), place, Does::Wrap);
    if !enforced {
        return work(&template);
    }
    // It points to this, so nobody may keep it for longer.
    let unwrap = UnwrapTemplate::new();
    template.push(unwrap.attribute());
    let done = work(&template);
    drop(unwrap);
    done
}

/// The key that encrypts the daemon's keys under a generation.
pub(super) fn sealing_key(generation: [u8; 16], place: Place) -> Vec<Attribute> {
    aes_key(generation, sealing_id(generation), place, Does::Encrypt)
}

/// What shows that a generation exists, on a token that makes no AES keys.
pub(super) fn data(generation: [u8; 16]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Modifiable(false),
        Attribute::Application(b"mlskeyd".to_vec()),
        Attribute::Value(generation.to_vec()),
        label(generation),
    ]
}

/// CKA_UNWRAP_TEMPLATE (PKCS#11 3.1, 4.10.3), and what is in it.
const CKA_UNWRAP_TEMPLATE: c_ulong = 0x4000_0212;
const CKA_CLASS: c_ulong = 0x0;
const CKA_TOKEN: c_ulong = 0x1;
const CKA_SENSITIVE: c_ulong = 0x103;
const CKA_EXTRACTABLE: c_ulong = 0x162;
const CKO_PRIVATE_KEY: c_ulong = 0x3;

/// The value of CKA_UNWRAP_TEMPLATE: a private key, SENSITIVE and not
/// EXTRACTABLE. cryptoki has no such attribute, so this writes the array of
/// CK_ATTRIBUTE itself: on Linux three machine words each (type, address of the
/// value, its length).
struct UnwrapTemplate {
    /// What the array points to; must not move while it is used.
    values: Box<Values>,
}

struct Values {
    class: [u8; size_of::<c_ulong>()],
    token: [u8; 1],
    sensitive: [u8; 1],
    extractable: [u8; 1],
}

impl UnwrapTemplate {
    fn new() -> Self {
        Self {
            values: Box::new(Values {
                class: CKO_PRIVATE_KEY.to_ne_bytes(),
                // On the token it would outlive its generation.
                token: [0],
                sensitive: [1],
                extractable: [0],
            }),
        }
    }

    /// Valid as long as this lives.
    fn attribute(&self) -> Attribute {
        let values: [(c_ulong, &[u8]); 4] = [
            (CKA_CLASS, &self.values.class),
            (CKA_TOKEN, &self.values.token),
            (CKA_SENSITIVE, &self.values.sensitive),
            (CKA_EXTRACTABLE, &self.values.extractable),
        ];
        let mut array = Vec::new();
        for (kind, value) in values {
            array.extend_from_slice(&kind.to_ne_bytes());
            array.extend_from_slice(&value.as_ptr().expose_provenance().to_ne_bytes());
            array.extend_from_slice(&value.len().to_ne_bytes());
        }
        Attribute::VendorDefined((AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE), array))
    }
}

/// The point in CKA_EC_POINT: some modules wrap it into an OCTET STRING, as the
/// standard says, and some do not.
pub(super) fn point(algorithm: Algorithm, value: &[u8]) -> Option<Vec<u8>> {
    let length = match algorithm {
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => 65,
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemP384) => 97,
        Algorithm::Signature(SignatureScheme::Ed25519) | Algorithm::Hpke(Kem::DhKemX25519) => 32,
    };
    let bare = match value {
        [0x04, l, rest @ ..] if usize::from(*l) == rest.len() && rest.len() == length => rest,
        other => other,
    };
    (bare.len() == length).then(|| bare.to_vec())
}
