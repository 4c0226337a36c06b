//! `policy`.

use std::path::PathBuf;

use clap::Subcommand;
use jiff::Timestamp;
use mlskeyd_protocol::v1::{ReadRefusals, ReloadPolicies};

use super::values::moment;
use super::{Answer, Context};
use crate::ctl::{CtlError, files, json, manifest, policy, replay};
use crate::policy_files::Known;

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum PolicyCommand {
    /// Say what is wrong with policies, or looks so; takes no daemon
    ///
    /// Errors have the daemon refuse the whole set, and keep that which is in force.
    Check {
        /// The company's policies
        #[arg(default_value = "/etc/mlskeyd/policies.d")]
        dir: PathBuf,
        /// The vendor's policies; those that mlskeyctl was built with if it is not there
        #[arg(long, default_value = "/usr/lib/mlskeyd/policies.d")]
        vendor: PathBuf,
        /// Public keys that may have signed the directory's manifest, each a line, as in
        /// *.pub [default: the `signers` of --config]
        #[arg(long, value_name = "FILE")]
        signer: Option<PathBuf>,
        /// The daemon's configuration [default: /etc/mlskeyd/mlskeyd.toml, if that can be
        /// read]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Write the manifest of a set of policies, to be signed; takes no daemon
    ///
    /// It goes to manifest.toml in the directory, and what signs it is printed: a daemon
    /// whose configuration names `signers` takes the set then, if the serial is higher than
    /// that of each set that it had so far.
    Manifest {
        /// The company's policies
        dir: PathBuf,
        /// A number that grows with each set that is rolled out
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX_SERIAL))]
        serial: u64,
        /// When a newer set is to be there, as in 2027-01-01 or 2027-01-01T08:00:00Z: after
        /// that it stays in force, and the daemon warns
        #[arg(long, value_name = "DATE", value_parser = moment)]
        expires: Option<Timestamp>,
    },
    /// Ask policies what their cases say; takes no daemon
    ///
    /// The last line is `N passed, N failed`.
    Test {
        /// Policies of the company (*.cedar), and cases (*.toml); without it, the
        /// vendor's policies and their own cases
        dir: Option<PathBuf>,
        /// The vendor's policies; those that mlskeyctl was built with if it is not there
        #[arg(long, default_value = "/usr/lib/mlskeyd/policies.d")]
        vendor: PathBuf,
    },
    /// Say of the last refusals what was refused, by which policies, and why
    ///
    /// And what would permit it: by the policies that are in force now. The facts are what
    /// policies knew of the request, as in a case; what is 0, false or empty is left out.
    Explain {
        /// All that are remembered, and not the last one alone
        #[arg(long)]
        all: bool,
        /// The request of this number in the audit log, whether it was refused or not
        #[arg(long, value_name = "NUMBER", conflicts_with = "all")]
        record: Option<u64>,
    },
    /// Say which decisions on record would be others by other policies; takes no daemon
    ///
    /// The last line is `N decisions, N would change`. Requests that were refused by a rule
    /// that no policy lifts, or that no policy was asked about, are left out.
    Replay {
        /// The audit log
        audit: PathBuf,
        /// The company's policies
        dir: PathBuf,
        /// The vendor's policies; those that mlskeyctl was built with if it is not there
        #[arg(long, default_value = "/usr/lib/mlskeyd/policies.d")]
        vendor: PathBuf,
        /// Explain this record alone: what was asked, and what these policies say to it
        #[arg(long, value_name = "NUMBER")]
        record: Option<u64>,
    },
    /// Have the daemon read its policies again
    ///
    /// If anything is wrong with them that is told, and those of before stay in force.
    Reload,
}

/// Higher numbers TOML does not have.
const MAX_SERIAL: u64 = i64::MAX.unsigned_abs();

pub(super) fn run(command: &PolicyCommand, context: &Context) -> Result<Answer, CtlError> {
    let shown = match command {
        PolicyCommand::Check {
            dir,
            vendor,
            signer,
            config,
        } => {
            let config = files::config(config.as_deref())?;
            let signers = manifest::signers(signer.as_deref(), config.as_ref())?;
            let known = config.as_ref().map(Known::of).unwrap_or_default();
            policy::check(vendor, dir, signers.as_ref(), &known)?
        }
        PolicyCommand::Manifest {
            dir,
            serial,
            expires,
        } => manifest::write(dir, *serial, *expires)?,
        PolicyCommand::Test { dir, vendor } => policy::test(vendor, dir.as_deref())?,
        PolicyCommand::Explain { all, record } => {
            let request = ReadRefusals { record: *record };
            policy::explain(&context.client.refusals(request, &context.call)?, *all)
        }
        PolicyCommand::Replay {
            audit,
            dir,
            vendor,
            record,
        } => match record {
            None => replay::all(audit, vendor, dir)?,
            Some(number) => replay::one(audit, *number, vendor, dir)?,
        },
        PolicyCommand::Reload => {
            let request = ReloadPolicies {};
            let now = context.client.reload_policies(request, &context.call)?;
            let text = policy::in_force(&now);
            return Ok(context.answer(json::policies(&now), text));
        }
    };
    let answer = context.answer(shown.json, shown.text);
    let code = u8::from(!shown.is_good);
    Ok(Answer { code, ..answer })
}
