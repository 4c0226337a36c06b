//! `storage`.

use clap::Subcommand;
use mlskeyd_protocol::v1::{Owner, StorageInfo};

use super::{Answer, Context, now, or_none};
use crate::ctl::table::{duration, printable, table};
use crate::ctl::{CtlError, confirm, json};
use crate::freeze_target::owner;

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum StorageCommand {
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

pub(super) fn run(command: Option<&StorageCommand>, context: &Context) -> Result<Answer, CtlError> {
    match command {
        None | Some(StorageCommand::List) => {
            let storages = context.client.storages(&context.call)?;
            let text = storages_text(&storages);
            Ok(context.answer(json::list(&storages, json::storage), text))
        }
        Some(StorageCommand::Forget { owner, name, yes }) => {
            let records = forget(owner, name, *yes, context)?;
            let text = format!("{records} records forgotten\n");
            Ok(context.answer(json::forgotten(records), text))
        }
    }
}

fn forget(owner: &Owner, name: &str, yes: bool, context: &Context) -> Result<u32, CtlError> {
    if !yes {
        confirm(&format!(
            "Keys that only the storage {} of {} needs will be destroyed for good. Forget it?",
            printable(name),
            printable(&owner.to_string()),
        ))?;
    }
    let Context { client, call, .. } = context;
    Ok(client.forget_storage(owner.clone(), name, call)?)
}

fn storages_text(storages: &[StorageInfo]) -> String {
    let now = now();
    let rows = storages.iter().map(|storage| {
        let seen = if storage.attached {
            "connected".to_owned()
        } else {
            format!(
                "{} ago",
                duration(now.saturating_sub(storage.last_attached))
            )
        };
        [
            storage.owner.to_string(),
            storage.name.clone(),
            seen,
            storage.records.to_string(),
            storage.keys.to_string(),
        ]
    });
    let text = table(["OWNER", "STORAGE", "SEEN", "RECORDS", "KEYS"], rows);
    or_none(storages, text, "no storages\n")
}
