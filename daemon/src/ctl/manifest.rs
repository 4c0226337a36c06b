//! The manifest of a signed set of policies, for those who sign and roll out.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde_json::json;

use super::policy::Shown;
use super::table::printable;
use super::{CtlError, files};
use crate::config::Config;
use crate::policy_files::manifest::{MANIFEST, Manifest, NAMESPACE, SIGNATURE, SignedSet};
use crate::policy_files::{Directory, PolicyError};
use crate::signers::Signers;

/// Longest file of public keys, in bytes.
const MAX_KEYS: usize = 1024 * 1024;

/// Who may sign: the keys of a file, or those of the configuration if there is one.
pub(super) fn signers(
    file: Option<&Path>,
    config: Option<&Config>,
) -> Result<Option<Signers>, CtlError> {
    let Some(file) = file else {
        return Ok(config.and_then(|config| config.policy.signers.clone()));
    };
    let text = files::read(file, MAX_KEYS)?;
    let text = String::from_utf8(text).map_err(|_| files::at(file, "it is no text"))?;
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let signers = Signers::parse(keys).map_err(|why| files::at(file, why))?;
    Ok(Some(signers))
}

/// Writes the manifest of a directory, and says how it is signed.
pub(super) fn write(
    dir: &Path,
    serial: u64,
    expires: Option<Timestamp>,
) -> Result<Shown, CtlError> {
    let directory = Directory::read(dir, true)?;
    let directory = directory.ok_or_else(|| files::at(dir, "it is not there"))?;
    let path = dir.join(MANIFEST);
    let before = directory.manifest.as_deref().map(Manifest::parse);
    if let Some(Ok(before)) = before
        && before.serial > serial
    {
        let why = format!(
            "it has serial {} already: daemons that took it refuse an older one; give a higher --serial",
            before.serial
        );
        return Err(files::at(&path, why));
    }
    let text = Manifest::write(serial, expires, &directory.files);
    let text = text.map_err(|why| files::at(dir, why))?;
    let io = |error: std::io::Error| files::at(&path, error);
    // As a whole, and without the signature of the one before.
    let fresh = dir.join(format!(".{MANIFEST}.new"));
    fs::write(&fresh, text).map_err(io)?;
    match fs::remove_file(dir.join(SIGNATURE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    fs::rename(&fresh, &path).map_err(io)?;
    let count = directory.files.len();
    let sign = format!(
        "ssh-keygen -Y sign -f KEY -n {NAMESPACE} {}",
        path.display()
    );
    Ok(Shown {
        json: json!({
            "manifest": path,
            "serial": serial,
            "policy_files": count,
            "sign": sign,
        }),
        text: format!(
            "{} lists {count} files, serial {serial}. Now have it signed, by the key of one of the `signers`:\n\n  {sign}\n",
            path.display()
        ),
        is_good: true,
    })
}

/// What there is to say of a directory's manifest, if it has one.
pub(super) fn check(dir: &Path, signers: Option<&Signers>) -> Result<Option<Shown>, CtlError> {
    let Some(directory) = Directory::read(dir, true)? else {
        return Ok(None);
    };
    let Some(manifest) = &directory.manifest else {
        return Ok(None);
    };
    let checked = match signers {
        Some(signers) => signed(dir, &directory, signers),
        None => unsigned(manifest, &directory),
    };
    let (read, why) = match checked {
        Ok(read) => (Some(read), None),
        Err(why) => (None, Some(why)),
    };
    let text = match (&read, &why) {
        (Some(read), _) => read.text(),
        (None, why) => format!("error: {}\n", printable(why.as_deref().unwrap_or_default())),
    };
    let json = json!({
        "serial": read.as_ref().map(|read| read.serial),
        "signer": read.as_ref().and_then(|read| read.signer.as_deref()),
        "expires": read.as_ref().and_then(|read| read.expires),
        "why": why,
    });
    Ok(Some(Shown {
        json,
        text,
        is_good: why.is_none(),
    }))
}

/// A manifest that fits its files.
struct Read {
    serial: u64,
    /// `None`: it is not known who may sign.
    signer: Option<String>,
    expires: Option<i64>,
}

fn signed(dir: &Path, directory: &Directory, signers: &Signers) -> Result<Read, String> {
    let set = SignedSet::verify(dir, directory, signers);
    let set = set.map_err(|error: PolicyError| error.to_string())?;
    let set = set.ok_or_else(|| "there is no manifest".to_owned())?;
    Ok(Read {
        serial: set.serial,
        signer: Some(set.signer),
        expires: set.expires,
    })
}

fn unsigned(manifest: &[u8], directory: &Directory) -> Result<Read, String> {
    let at = |why: String| format!("{MANIFEST}: {why}");
    let read = Manifest::parse(manifest).map_err(at)?;
    let expires = read.expires().map_err(at)?;
    read.check(&directory.files)
        .map_err(|(name, why)| format!("{name}: {why}"))?;
    Ok(Read {
        serial: read.serial,
        signer: None,
        expires: expires.map(Timestamp::as_second),
    })
}

impl Read {
    fn text(&self) -> String {
        let mut text = format!("the manifest has serial {}", self.serial);
        match &self.signer {
            Some(signer) => text.push_str(&format!(", signed by {}\n", printable(signer))),
            None => text.push_str("; who signed it is not looked at: name who may with --signer\n"),
        }
        if let Some(expires) = self.expires
            && expires <= Timestamp::now().as_second()
        {
            let when = Timestamp::from_second(expires).unwrap_or_default();
            text.push_str(&format!("WARNING: it EXPIRED at {when}\n"));
        }
        text
    }
}
