//! How a TPM is reached: a name of TSS's loader of transports (TCTI), and what
//! that one takes. Only those that are known here: the loader takes the path of
//! any library, too.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

/// A TCTI, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcti(String);

const KNOWN: &str = "a TCTI is `device:` and a path, `swtpm:` or `mssim:` and `host=ADDRESS,port=NUMBER`, or `tabrmd`, which takes `:bus_type=system` or `session` and `bus_name=NAME`";

impl Tcti {
    /// Checks a TCTI.
    ///
    /// # Errors
    /// What one looks like.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let is_one = match kind {
            "device" => is_path(rest),
            "swtpm" | "mssim" => is_list(rest, &[("host", is_host), ("port", is_port)]),
            "tabrmd" if rest.is_empty() => !text.contains(':'),
            "tabrmd" => is_list(
                rest,
                &[("bus_name", is_bus_name), ("bus_type", is_bus_type)],
            ),
            _ => false,
        };
        if is_one {
            Ok(Self(text.to_owned()))
        } else {
            Err(KNOWN)
        }
    }

    /// The device file, if it is one.
    #[must_use]
    pub fn device(&self) -> Option<&Path> {
        self.0.strip_prefix("device:").map(Path::new)
    }

    /// Is there a resource manager, which gives each of its users a TPM that looks
    /// like its own?
    #[must_use]
    pub fn is_managed(&self) -> bool {
        let of_kernel = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with("tpmrm")
        };
        self.device()
            .map_or_else(|| self.0.starts_with("tabrmd"), of_kernel)
    }

    /// The Debian package that TSS's library for it is in.
    #[must_use]
    pub fn package(&self) -> String {
        let kind = self.0.split(':').next().unwrap_or_default();
        format!("libtss2-tcti-{kind}0")
    }

    /// As TSS's loader takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tcti {
    /// The kernel's resource manager.
    fn default() -> Self {
        Self("device:/dev/tpmrm0".to_owned())
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The value of an option, checked.
type Check = fn(&str) -> bool;

/// `key=value,key=value`, each of these keys at most once. TSS drops what it does
/// not know without a word, and goes to some other TPM.
fn is_list(text: &str, keys: &[(&str, Check)]) -> bool {
    let mut seen = Vec::new();
    text.split(',').all(|option| {
        let Some((key, value)) = option.split_once('=') else {
            return false;
        };
        let known = keys.iter().find(|(known, _)| *known == key);
        let fresh = !seen.contains(&key);
        seen.push(key);
        fresh && known.is_some_and(|(_, check)| check(value))
    })
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.contains(char::is_control)
}

fn is_host(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let is_name = !text.is_empty() && text.len() < 254 && text.chars().all(is_plain);
    text.parse::<IpAddr>().is_ok() || is_name
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_bus_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.contains('.') && text.chars().all(is_plain)
}

fn is_bus_type(text: &str) -> bool {
    ["system", "session"].contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_ones_are_taken() {
        for (text, managed) in [
            ("device:/dev/tpmrm0", true),
            ("device:/dev/tpmrm1", true),
            ("device:/dev/tpm0", false),
            ("swtpm:host=127.0.0.1,port=2321", false),
            ("swtpm:port=2321", false),
            ("mssim:port=2321,host=localhost", false),
            ("swtpm:host=::1,port=2321", false),
            ("tabrmd", true),
            (
                "tabrmd:bus_type=session,bus_name=com.intel.tss2.Tabrmd",
                true,
            ),
        ] {
            let tcti = Tcti::parse(text).unwrap();
            assert_eq!((tcti.as_str(), tcti.is_managed()), (text, managed));
        }
        assert!(Tcti::parse(Tcti::default().as_str()).is_ok());
    }

    #[test]
    fn nothing_else_is_taken() {
        for text in [
            "",
            "device",
            "device:",
            "device:tpm0",
            "device:/dev/tpm\n0",
            "swtpm",
            "swtpm:",
            "swtpm:path=/run/tpm",
            "swtpm:host=127.0.0.1,port=2321,path=/run/tpm",
            "swtpm:port=1,port=2",
            "swtpm:port=0",
            "swtpm:port=70000",
            "swtpm:host=a b,port=1",
            "tabrmd:",
            "tabrmd:bus_type=other",
            "cmd:sh -c true",
            "/usr/lib/evil.so",
            "libtss2-tcti-device.so.0:/dev/tpm0",
        ] {
            assert!(Tcti::parse(text).is_err(), "{text:?}");
        }
    }
}
