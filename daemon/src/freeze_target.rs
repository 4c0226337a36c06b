//! What can be frozen, in words: the same on the command line and in files.

use clap::{Parser, Subcommand};
use mlskeyd_protocol::v1::{FreezeTarget, Owner};

#[derive(Debug, Subcommand)]
pub(crate) enum TargetCommand {
    /// Everything
    All,
    /// All that is a user's
    User {
        /// The user id
        uid: u32,
    },
    /// All that is an app's, of whichever user
    App {
        /// The app's name
        name: String,
    },
    /// One identity
    Identity {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
    },
    /// All that is on a device
    Device {
        /// The device's name
        name: String,
    },
}

impl TargetCommand {
    pub(crate) fn target(&self) -> FreezeTarget {
        match self {
            Self::All => FreezeTarget::All,
            Self::User { uid } => FreezeTarget::User(*uid),
            Self::App { name } => FreezeTarget::App(name.clone()),
            Self::Identity { owner, name } => FreezeTarget::Identity {
                owner: owner.clone(),
                name: name.clone(),
            },
            Self::Device { name } => FreezeTarget::Device(name.clone()),
        }
    }
}

/// The words, where they are a command line of their own.
#[derive(Parser)]
#[command(
    no_binary_name = true,
    disable_help_flag = true,
    disable_help_subcommand = true
)]
struct Words {
    #[command(subcommand)]
    target: TargetCommand,
}

/// Reads a target as `mlskeyctl freeze` takes it. A name is the last word, and goes to the
/// end: it is not quoted.
pub(crate) fn parse(text: &str) -> Result<FreezeTarget, String> {
    let kind = text.split(' ').next().unwrap_or_default();
    let words = if kind == "identity" { 3 } else { 2 };
    let mut words: Vec<&str> = text.splitn(words, ' ').collect();
    // What follows are names, also those that begin with a hyphen.
    words.insert(1, "--");
    Words::try_parse_from(words)
        .map(|words| words.target.target())
        .map_err(|_| {
            format!(
                "{text:?} is nothing that can be frozen, as `mlskeyctl freeze` takes it: `all`, `user 1000`, `app NAME`, `identity 1000/default NAME`, `device NAME`"
            )
        })
}

/// An owner, as it is shown.
pub(crate) fn owner(text: &str) -> Result<Owner, String> {
    let wrong = || "an owner is a user id, a slash, an app's name, as in 1000/default".to_owned();
    let (uid, app) = text.split_once('/').ok_or_else(wrong)?;
    if app.is_empty() {
        return Err(wrong());
    }
    Ok(Owner {
        uid: uid.parse().map_err(|_| wrong())?,
        app: app.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_the_words_of_the_command_line() {
        let owner = Owner {
            uid: 1000,
            app: "default".to_owned(),
        };
        for (text, target) in [
            ("all", FreezeTarget::All),
            ("user 1000", FreezeTarget::User(1000)),
            ("app the bank's", FreezeTarget::App("the bank's".to_owned())),
            ("device --help", FreezeTarget::Device("--help".to_owned())),
            (
                "identity 1000/default Alice B",
                FreezeTarget::Identity {
                    owner,
                    name: "Alice B".to_owned(),
                },
            ),
        ] {
            assert_eq!(parse(text), Ok(target));
        }
        for wrong in [
            "",
            "everything",
            "user",
            "user alice",
            "user -1",
            "user 1 2",
            "all of it",
            "--help",
            "help",
            "identity 1000/default",
            "identity alice bob",
            "device",
            " all",
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("identity 1000/default NAME"), "{error}");
        }
    }

    #[test]
    fn an_owner_reads_as_it_is_shown() {
        let shown = Owner {
            uid: 1000,
            app: "a/b".to_owned(),
        };
        assert_eq!(owner(&shown.to_string()), Ok(shown));
        for wrong in ["1000", "/app", "1000/", "-1/app", "alice/app"] {
            assert!(owner(wrong).is_err(), "{wrong}");
        }
    }
}
