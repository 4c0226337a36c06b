//! The command line of `mlskeyd`, of which its manual page is made, too.

use std::path::PathBuf;

use clap::Parser;

/// Keeps the private keys of MLS apps in devices, and decides what they sign.
#[derive(Debug, Parser)]
#[command(
    name = "mlskeyd",
    version,
    after_help = "\
Environment:
  MLSKEYD_LOG  What is logged to stderr, such as `debug` or `mlskeyd::custody=debug`
               (default: `info,tarpc=off`)

Exit codes:
  0  stopped by SIGTERM or SIGINT (SIGHUP has it read its policies again), or --check-config found nothing wrong
  1  could not start, or ended by a fault
  2  wrong arguments
  3  the configuration was refused"
)]
pub struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/mlskeyd/mlskeyd.toml")]
    pub config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    pub check_config: bool,
    /// Print the line `ready` on stdout when apps can connect.
    #[arg(long)]
    pub notify_stdout: bool,
}
