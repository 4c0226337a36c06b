//! What a YubiKey says in the certificate of a key in one of its slots: the slot in the subject, the rest in
//! extensions of Yubico's (<https://docs.yubico.com/hardware/oid/oid-piv-arc.html>).

use std::collections::BTreeSet;
use std::fmt;

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::Utf8StringRef;
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::spki::ObjectIdentifier;

use crate::attest::Refusal;

/// The subject of a key's certificate, before its slot.
const SUBJECT: &str = "YubiKey PIV Attestation ";

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const FIRMWARE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.3");
const SERIAL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.7");
const POLICIES: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.8");
const FORM_FACTOR: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.9");

/// What a YubiKey says of a key that it made, and of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attested {
    /// Where the key is: 9A, 9C, 9D, 9E, or 82 to 95.
    pub slot: u8,
    /// The YubiKey's firmware.
    pub firmware: Firmware,
    /// The YubiKey's serial number.
    pub serial: u32,
    /// When the key wants the PIN.
    pub pin: PinPolicy,
    /// When the key wants a touch.
    pub touch: TouchPolicy,
    /// What the YubiKey looks like; those before firmware 5 do not say it.
    pub form_factor: Option<FormFactor>,
}

/// A firmware's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Firmware {
    /// The first number.
    pub major: u8,
    /// The second number.
    pub minor: u8,
    /// The third number.
    pub patch: u8,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// When a key wants the PIN. The latter two are of YubiKeys with a fingerprint reader
/// (<https://docs.yubico.com/yesdk/users-manual/application-piv/pin-touch-policies.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinPolicy {
    /// It wants none.
    Never,
    /// Once in a session.
    Once,
    /// Before each use.
    Always,
    /// A fingerprint or the PIN, once in a session.
    MatchOnce,
    /// A fingerprint or the PIN, before each use.
    MatchAlways,
}

impl PinPolicy {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Never),
            2 => Some(Self::Once),
            3 => Some(Self::Always),
            4 => Some(Self::MatchOnce),
            5 => Some(Self::MatchAlways),
            _ => None,
        }
    }

    /// Its name, which never changes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Once => "once",
            Self::Always => "always",
            Self::MatchOnce => "match-once",
            Self::MatchAlways => "match-always",
        }
    }
}

/// When a key wants a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TouchPolicy {
    /// It wants none.
    Never,
    /// For each use.
    Always,
    /// For each use, but for 15 seconds after one.
    Cached,
}

impl TouchPolicy {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Never),
            2 => Some(Self::Always),
            3 => Some(Self::Cached),
            _ => None,
        }
    }

    /// Its name, which never changes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Always => "always",
            Self::Cached => "cached",
        }
    }
}

/// What a YubiKey looks like: its byte, since new ones come
/// (<https://docs.yubico.com/yesdk/yubikey-api/Yubico.YubiKey.FormFactor.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormFactor(pub u8);

impl fmt::Display for FormFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The highest bit is that of the FIPS series, the next one that of security keys.
        let fips = if self.0 & 0x80 == 0 { "" } else { ", FIPS" };
        match self.0 & 0x7f {
            1 => write!(f, "USB-A keychain{fips}"),
            2 => write!(f, "USB-A nano{fips}"),
            3 => write!(f, "USB-C keychain{fips}"),
            4 => write!(f, "USB-C nano{fips}"),
            5 => write!(f, "USB-C and Lightning{fips}"),
            6 => write!(f, "USB-A with fingerprint reader{fips}"),
            7 => write!(f, "USB-C with fingerprint reader{fips}"),
            _ => write!(f, "unknown ({:#04x})", self.0),
        }
    }
}

impl Attested {
    /// Reads a certificate whole. Who issued it is not looked at.
    pub(super) fn read(der: &[u8]) -> Result<Self, Refusal> {
        let certificate = Certificate::from_der(der)
            .map_err(|error| Refusal::SlotCertificate(error.to_string()))?;
        let certificate = &certificate.tbs_certificate;
        let extensions = Extensions::of(certificate.extensions.as_deref().unwrap_or_default())?;
        let [major, minor, patch] = extensions.bytes("firmware version", FIRMWARE)?;
        let [pin, touch] = extensions.bytes("PIN and touch policy", POLICIES)?;
        let form_factor = match extensions.find(FORM_FACTOR) {
            None => None,
            Some([byte]) => Some(FormFactor(*byte)),
            Some(_) => return Err(odd("form factor")),
        };
        Ok(Self {
            slot: slot(&certificate.subject)?,
            firmware: Firmware {
                major,
                minor,
                patch,
            },
            serial: u32::from_der(extensions.required("serial number", SERIAL)?)
                .map_err(|_| odd("serial number"))?,
            pin: PinPolicy::of(pin).ok_or_else(|| odd("PIN policy"))?,
            touch: TouchPolicy::of(touch).ok_or_else(|| odd("touch policy"))?,
            form_factor,
        })
    }
}

/// The slot of a key that can be in custody: neither F9, whose key signs certificates only, nor any that there
/// is not.
fn slot(subject: &Name) -> Result<u8, Refusal> {
    let name = common_name(subject).and_then(|name| name.strip_prefix(SUBJECT));
    let digits = name.filter(|digits| digits.len() == 2);
    match digits.map(|digits| u8::from_str_radix(digits, 16)) {
        Some(Ok(slot @ (0x9a | 0x9c | 0x9d | 0x9e | 0x82..=0x95))) => Ok(slot),
        _ => Err(Refusal::Slot),
    }
}

/// Is this what F9 makes for a key, though something may be missing?
pub(super) fn is_of_key(certificate: &Certificate) -> bool {
    let certificate = &certificate.tbs_certificate;
    let mut extensions = certificate.extensions.iter().flatten();
    extensions.any(|one| one.extn_id == POLICIES)
        || common_name(&certificate.subject).is_some_and(|name| name.starts_with(SUBJECT))
}

/// The common name of a subject that has nothing else.
pub(super) fn common_name(subject: &Name) -> Option<&str> {
    let [part] = subject.0.as_slice() else {
        return None;
    };
    let [attribute] = part.0.as_slice() else {
        return None;
    };
    let text = attribute.value.decode_as::<Utf8StringRef<'_>>().ok()?;
    (attribute.oid == COMMON_NAME).then_some(text.as_str())
}

/// The extensions of a certificate, none of them twice.
struct Extensions<'a>(&'a [Extension]);

impl<'a> Extensions<'a> {
    fn of(extensions: &'a [Extension]) -> Result<Self, Refusal> {
        let mut seen = BTreeSet::new();
        if extensions.iter().all(|one| seen.insert(one.extn_id)) {
            Ok(Self(extensions))
        } else {
            Err(Refusal::SlotExtension {
                what: "one of its extensions",
                why: "is there twice",
            })
        }
    }

    fn find(&self, id: ObjectIdentifier) -> Option<&'a [u8]> {
        let found = self.0.iter().find(|one| one.extn_id == id);
        found.map(|one| one.extn_value.as_bytes())
    }

    fn required(&self, what: &'static str, id: ObjectIdentifier) -> Result<&'a [u8], Refusal> {
        self.find(id).ok_or(Refusal::SlotExtension {
            what,
            why: "is missing",
        })
    }

    fn bytes<const N: usize>(
        &self,
        what: &'static str,
        id: ObjectIdentifier,
    ) -> Result<[u8; N], Refusal> {
        let value = self.required(what, id)?;
        value.try_into().map_err(|_| odd(what))
    }
}

const fn odd(what: &'static str) -> Refusal {
    Refusal::SlotExtension {
        what,
        why: "is none that is known",
    }
}
