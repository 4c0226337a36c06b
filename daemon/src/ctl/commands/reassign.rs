//! `keys reassign`.

use clap::Args;
use mlskeyd_protocol::v1::{Owner, ReassignKeys, Reassigned};

use super::{Answer, Context};
use crate::ctl::table::printable;
use crate::ctl::{CtlError, confirm, json};
use crate::freeze_target::owner;

#[derive(Debug, Args)]
pub(in crate::ctl) struct ReassignArgs {
    /// Whose it is: uid/app, as in 1000/default
    #[arg(value_parser = owner)]
    from: Owner,
    /// Whose it is to be: uid/app, as in 1000/wire
    #[arg(value_parser = owner)]
    to: Owner,
    /// Only this identity, with its signature keys and what the guard remembers of it; may
    /// be repeated
    #[arg(long, value_name = "NAME")]
    identity: Vec<String>,
    /// Only this storage, with the keys that its records name; may be repeated
    #[arg(long, value_name = "NAME")]
    storage: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(args: &ReassignArgs, context: &Context) -> Result<Answer, CtlError> {
    if !args.yes {
        let all = args.identity.is_empty() && args.storage.is_empty();
        confirm(&format!(
            "Apps that are {} lose {} to {}. Do that?",
            printable(&args.from.to_string()),
            if all { "all that they have" } else { "it" },
            printable(&args.to.to_string()),
        ))?;
    }
    let request = ReassignKeys {
        from: args.from.clone(),
        to: args.to.clone(),
        identities: args.identity.clone(),
        storages: args.storage.clone(),
    };
    let reassigned = context.client.reassign_keys(request, &context.call)?;
    let json = json::reassigned(&args.from, &args.to, &reassigned);
    Ok(context.answer(json, text(&args.to, &reassigned)))
}

fn text(to: &Owner, reassigned: &Reassigned) -> String {
    let to = printable(&to.to_string());
    let of_kind = |kind: &str, names: &[String]| {
        let line = |name: &String| format!("{kind} {} is {to}'s\n", printable(name));
        names.iter().map(line).collect::<String>()
    };
    format!(
        "{}{}{} signature keys and {} HPKE keys are {to}'s\n",
        of_kind("identity", &reassigned.identities),
        of_kind("storage", &reassigned.storages),
        reassigned.signature_keys,
        reassigned.hpke_keys,
    )
}
