//! `audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Answer, Context};
use crate::ctl::CtlError;
use crate::ctl::audit::{self, Wanted};

/// The exit code of a log whose chain is broken.
const BROKEN: u8 = 8;

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum AuditCommand {
    /// Prove that nothing in the audit log was changed, removed or inserted
    ///
    /// If its chain is broken it is said where: exit code 8. The hash that it ends with stands
    /// for the whole log: whoever keeps it, elsewhere, sees later whether records that were
    /// there then are there still.
    Verify {
        #[command(flatten)]
        log: LogArgs,
    },
    /// Show records
    Show {
        #[command(flatten)]
        log: LogArgs,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Show the last records, and new ones as they are written, until it is ended
    ///
    /// With --json each is a line. It ends by itself when nobody reads it any more.
    Follow {
        #[command(flatten)]
        log: LogArgs,
        #[command(flatten)]
        wanted: Wanted,
    },
}

/// Which log.
#[derive(Debug, Args)]
pub(in crate::ctl) struct LogArgs {
    /// The audit log [default: audit.log in the `state_dir` of --config]
    log: Option<PathBuf>,
    /// The daemon's configuration [default: /etc/mlskeyd/mlskeyd.toml, if that can be
    /// read]
    #[arg(long, value_name = "FILE", conflicts_with = "log")]
    config: Option<PathBuf>,
}

impl LogArgs {
    fn path(&self) -> Result<PathBuf, CtlError> {
        audit::path(self.log.as_deref(), self.config.as_deref())
    }
}

pub(super) fn run(command: &AuditCommand, context: &Context) -> Result<Answer, CtlError> {
    match command {
        AuditCommand::Verify { log } => {
            let (json, text, holds) = audit::verify(&log.path()?, context.json)?;
            let code = if holds { 0 } else { BROKEN };
            let answer = context.answer(json, text);
            Ok(Answer { code, ..answer })
        }
        AuditCommand::Show { log, wanted } => {
            let (json, text) = audit::show(&log.path()?, wanted, context.json)?;
            Ok(context.answer(json, text))
        }
        AuditCommand::Follow { log, wanted } => {
            audit::follow(&log.path()?, wanted, context.json)?;
            Ok(Answer {
                text: String::new(),
                code: 0,
            })
        }
    }
}
