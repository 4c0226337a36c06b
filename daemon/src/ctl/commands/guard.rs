//! `guard`.

use clap::Subcommand;
use mlskeyd_protocol::v1::{Bytes, Owner, RegistryRestored, ResetGuard};
use serde_json::json;

use super::{Answer, Context};
use crate::ctl::CtlError;
use crate::freeze_target::owner;

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum GuardCommand {
    /// Say that the state directory was put back from a copy
    ///
    /// The daemon finds out by itself if the registry alone was, by the audit log beside
    /// it; of a whole machine that was put back it cannot know. All groups of before are
    /// refused then until they are entered again, or reset.
    Restored,
    /// Have the guard forget what an identity signed in a group
    ///
    /// For an app whose storage was restored from a copy, if it is really to go on from
    /// there: it signs in whatever epoch it is in then. Entering the group again by an
    /// external commit takes no reset.
    Reset {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        identity: String,
        /// The MLS group id, in hexadecimal, as the records have it
        #[arg(value_parser = group)]
        group: Bytes,
    },
}

fn group(text: &str) -> Result<Bytes, String> {
    let decoded = hex::decode(text).map(Bytes);
    decoded.map_err(|_| "a group id is in hexadecimal digits".to_owned())
}

pub(super) fn run(command: &GuardCommand, context: &Context) -> Result<Answer, CtlError> {
    let Context { client, call, .. } = context;
    match command {
        GuardCommand::Restored => {
            client.registry_restored(RegistryRestored {}, call)?;
            let text = "all groups of before are to be entered again, or reset\n";
            Ok(context.answer(json!({ "restored": true }), text.to_owned()))
        }
        GuardCommand::Reset {
            owner,
            identity,
            group,
        } => {
            let request = ResetGuard {
                owner: owner.clone(),
                identity: identity.clone(),
                group: group.clone(),
            };
            let reset = client.reset_guard(request, call)?;
            let text = format!("forgotten; the newest epoch was {}\n", reset.epoch);
            Ok(context.answer(json!({ "epoch": reset.epoch }), text))
        }
    }
}
