//! `keys`.

use clap::Subcommand;
use mlskeyd_protocol::v1::{KeyQuery, OwnedKey, Swept};

use super::reassign::{self, ReassignArgs};
use super::{Answer, Context, now, or_none, state_text};
use crate::ctl::progress::Progress;
use crate::ctl::table::{duration, table};
use crate::ctl::{CtlError, json};

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum KeysCommand {
    /// List keys (the default)
    List {
        /// Show destroyed keys, too
        #[arg(long)]
        all: bool,
    },
    /// Destroy now what is due
    ///
    /// That goes on portion by portion, and shows on the terminal how far it has
    /// come. Whoever ends it leaves the rest for the next one, or for the daemon.
    Sweep,
    /// Give what an owner has to another one: identities, storages, and their keys
    ///
    /// For an app that got a name, or another one, in the configuration. All goes at once,
    /// or nothing: if the new owner has an identity or a storage of the same name, or
    /// something of it is frozen, nothing is changed. Apps need not be closed; those of
    /// the owner before lose what is not theirs any more.
    Reassign(ReassignArgs),
}

pub(super) fn run(
    all: bool,
    command: Option<&KeysCommand>,
    context: &Context,
) -> Result<Answer, CtlError> {
    let listed = match command {
        None => all,
        Some(KeysCommand::List { all: too }) => all || *too,
        Some(KeysCommand::Reassign(args)) => return reassign::run(args, context),
        Some(KeysCommand::Sweep) => {
            let swept = sweep(context)?;
            return Ok(context.answer(json::swept(&swept), swept_text(&swept)));
        }
    };
    let keys = keys(listed, context)?;
    Ok(context.answer(json::list(&keys, json::key), keys_text(&keys)))
}

fn swept_text(swept: &Swept) -> String {
    let mut text = format!(
        "{} keys destroyed; {} wait until their storage is connected\n",
        swept.destroyed, swept.waiting
    );
    if swept.stuck > 0 {
        text.push_str(&format!(
            "{} generations of destroyed keys wait until their device is ready: see `mlskeyctl devices`\n",
            swept.stuck
        ));
    }
    text
}

/// All portions. Each is whole by itself: whoever has enough may end the command.
fn sweep(context: &Context) -> Result<Swept, CtlError> {
    let Context { client, call, json } = context;
    let mut progress = Progress::new(*json);
    let mut destroyed = 0;
    let swept = client.sweep_all(call, |so_far| {
        destroyed = so_far.destroyed;
        progress.show(&format!("{destroyed} keys destroyed, and there are more"));
    });
    match swept {
        Err(error) if destroyed > 0 => Err(CtlError::Swept {
            destroyed,
            source: Box::new(error.into()),
        }),
        swept => Ok(swept?),
    }
}

/// All pages.
fn keys(destroyed: bool, context: &Context) -> Result<Vec<OwnedKey>, CtlError> {
    let Context { client, call, .. } = context;
    let mut keys: Vec<OwnedKey> = Vec::new();
    loop {
        let after = keys.last().map(|last| last.key.id);
        let page = client.keys(KeyQuery { after, destroyed }, call)?;
        // A page that does not go on would be asked for again for ever.
        let goes_on = page.last().is_some_and(|last| Some(last.key.id) > after);
        keys.extend(page);
        if !goes_on {
            return Ok(keys);
        }
    }
}

fn keys_text(keys: &[OwnedKey]) -> String {
    let now = now();
    let rows = keys.iter().map(|owned| {
        let key = &owned.key;
        [
            key.id.to_string(),
            owned.owner.to_string(),
            key.purpose.to_string(),
            key.algorithm.to_string(),
            key.tier.to_string(),
            key.device.clone(),
            state_text(key),
            owned.claims.to_string(),
            duration(now.saturating_sub(key.created)),
            owned.identity.clone().unwrap_or_default(),
        ]
    });
    let titles = [
        "KEY",
        "OWNER",
        "PURPOSE",
        "ALGORITHM",
        "TIER",
        "DEVICE",
        "STATE",
        "CLAIMS",
        "AGE",
        "IDENTITY",
    ];
    or_none(keys, table(titles, rows), "no keys\n")
}
