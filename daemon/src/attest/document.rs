//! The JSON documents that attestation passes around. Each says its format and version first of all, so
//! that what a newer version wrote is told from what is broken.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest document, in bytes.
pub const MAX_DOCUMENT: usize = 64 * 1024;

/// Why some bytes are not a document of a format. The text may quote the document: not for a terminal
/// as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is too long to be one.
    #[error("it is longer than {MAX_DOCUMENT} bytes")]
    TooLong,
    /// It is another document, or none.
    #[error("it does not say that it is of format {expected:?}")]
    OtherFormat {
        /// What it should say.
        expected: &'static str,
    },
    /// A version that this program does not know.
    #[error("it is of version {found}, and this program knows versions up to {newest}")]
    Version {
        /// What it says.
        found: u32,
        /// The newest version of its format here.
        newest: u32,
    },
    /// It breaks the rules of its format.
    #[error("{0}")]
    Content(String),
}

/// A kind of document.
pub(super) trait Document: Serialize + DeserializeOwned {
    /// What it calls itself.
    const FORMAT: &'static str;

    /// The newest version of the format; the oldest is 1.
    const NEWEST: u32 = 1;

    /// The first version that knows such content.
    fn version(&self) -> u32 {
        1
    }

    /// The rules that its types do not keep by themselves.
    ///
    /// # Errors
    /// The rule that is broken.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    format: &'a str,
    version: u32,
}

#[derive(Serialize)]
struct Whole<'a, T> {
    format: &'a str,
    version: u32,
    content: &'a T,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parsed<T> {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u32,
    content: T,
}

/// Reads a document whole.
pub(super) fn read<T: Document>(bytes: &[u8]) -> Result<T, DocumentError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(DocumentError::TooLong);
    }
    let content = |error: serde_json::Error| DocumentError::Content(error.to_string());
    let expected = T::FORMAT;
    let head: Head<'_> =
        serde_json::from_slice(bytes).map_err(|_| DocumentError::OtherFormat { expected })?;
    if head.format != expected {
        return Err(DocumentError::OtherFormat { expected });
    }
    let (found, newest) = (head.version, T::NEWEST);
    if found == 0 || found > newest {
        return Err(DocumentError::Version { found, newest });
    }
    let parsed: Parsed<T> = serde_json::from_slice(bytes).map_err(content)?;
    let version = parsed.content.version();
    if found != version {
        return Err(DocumentError::Content(format!(
            "it is of version {found}, and such content is of version {version}"
        )));
    }
    parsed.content.check().map_err(DocumentError::Content)?;
    Ok(parsed.content)
}

/// Writes a document, for people to read as well.
pub(super) fn write<T: Document>(document: &T) -> String {
    let whole = Whole {
        format: T::FORMAT,
        version: document.version(),
        content: document,
    };
    // Text, numbers and lists of them, which is what these are, can always be written.
    let mut text = serde_json::to_string_pretty(&whole).unwrap_or_default();
    text.push('\n');
    text
}
