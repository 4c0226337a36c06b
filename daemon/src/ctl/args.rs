//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use mlskeyd_protocol::v1::Owner;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  the daemon cannot be reached, or its version does not fit
  4  denied

Only root and the daemon's own user are served.";

const JSON: &str = "\
JSON (with --json; fields are only ever added):
  OWNER    {\"uid\", \"app\"}
  DEVICE   {\"name\", \"kind\", \"state\": \"absent|locked|ready|failed\", \"detail\": text or null,
            \"default\", \"offers\": [{\"algorithm\", \"tier\": \"hardware|sealed|software\"}],
            \"suites\": [{\"suite\", \"tier\": as above, or null if not possible,
                        \"why\": [text]}]}
  status          {\"version\", \"pid\", \"uptime_seconds\", \"connections\", \"keys\",
                   \"read_only\": text or null, \"audit_sequence\", \"devices\": [DEVICE]}
  devices         [DEVICE]
  identities      [{\"owner\": OWNER, \"name\", \"credential\": {\"basic\": hex} or {\"x509\": [hex]},
                    \"key\", \"algorithm\", \"public_key\": hex, \"device\", \"tier\"}]
  keys list       [{\"owner\": OWNER, \"id\", \"algorithm\", \"purpose\": \"signature|hpke|init|leaf\",
                    \"state\": \"active|idle|missing|destroyed\", \"public_key\": hex, \"device\",
                    \"tier\", \"created\": seconds since 1970, \"identity\": text or null, \"claims\"}]
  keys sweep      {\"destroyed\", \"waiting\"}
  storage list    [{\"owner\": OWNER, \"name\", \"attached\", \"records\", \"keys\",
                    \"last_attached\": seconds since 1970}]
  storage forget  {\"records\"}";

/// Shows what mlskeyd keeps, and tidies it up.
#[derive(Debug, Parser)]
#[command(name = "mlskeyctl", version, after_help = EXIT_CODES,
          after_long_help = format!("{JSON}\n\n{EXIT_CODES}"))]
pub(super) struct Args {
    /// The daemon's socket [default: $MLSKEYD_SOCKET, else /run/mlskeyd/socket if
    /// that is there, else $XDG_RUNTIME_DIR/mlskeyd/socket if that is there]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Print JSON (--help describes it)
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The daemon at a glance
    Status,
    /// The devices, and what they offer
    Devices,
    /// The identities, and which keys sign for them
    Identities,
    /// The keys in custody
    Keys {
        /// Show destroyed keys, too
        #[arg(long)]
        all: bool,
        #[command(subcommand)]
        command: Option<KeysCommand>,
    },
    /// The apps' storages, whose records say which keys are needed
    Storage {
        #[command(subcommand)]
        command: Option<StorageCommand>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// List keys (the default)
    List {
        /// Show destroyed keys, too
        #[arg(long)]
        all: bool,
    },
    /// Destroy now what is due
    Sweep,
}

#[derive(Debug, Subcommand)]
pub(super) enum StorageCommand {
    /// List storages (the default)
    List,
    /// Drop all claims of a storage whose database is gone: keys that nothing
    /// else claims are destroyed when their grace is over
    Forget {
        /// As `storage list` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The storage's name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

fn owner(text: &str) -> Result<Owner, String> {
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
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
        let args = Args::parse_from(["mlskeyctl", "keys", "--json"]);
        assert!(
            args.json
                && matches!(
                    args.command,
                    Command::Keys {
                        all: false,
                        command: None
                    }
                )
        );
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
