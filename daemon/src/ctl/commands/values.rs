//! What several commands take, as text that is checked.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use mlskeyd_protocol::v1::{SignatureScheme, Tier};

use crate::config::parse_duration;

pub(in crate::ctl) fn tier() -> impl TypedValueParser<Value = Tier> {
    PossibleValuesParser::new(["hardware", "sealed", "software"]).map(|text| match text.as_str() {
        "hardware" => Tier::Hardware,
        "sealed" => Tier::Sealed,
        _ => Tier::Software,
    })
}

pub(in crate::ctl) fn scheme() -> impl TypedValueParser<Value = SignatureScheme> {
    PossibleValuesParser::new(["ed25519", "p256", "p384"]).map(|text| match text.as_str() {
        "ed25519" => SignatureScheme::Ed25519,
        "p384" => SignatureScheme::EcdsaP384Sha384,
        _ => SignatureScheme::EcdsaP256Sha256,
    })
}

pub(in crate::ctl) fn grace(text: &str) -> Result<u64, String> {
    let duration = parse_duration(text).ok_or(
        "a duration is a number and a unit, as in 30s, 15m, 24h or 90d (10 years at most)",
    )?;
    Ok(duration.as_secs())
}

/// A moment, or the start of a day in UTC.
pub(in crate::ctl) fn moment(text: &str) -> Result<Timestamp, String> {
    let day = format!("{text}T00:00:00Z");
    let moment = text.parse().or_else(|_| day.parse());
    moment.map_err(|_| "a date is as in 2027-01-01, or 2027-01-01T08:00:00Z".to_owned())
}
