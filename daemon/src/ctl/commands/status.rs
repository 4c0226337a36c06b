//! `status`.

use mlskeyd_protocol::v1::DaemonStatus;

use super::{Answer, Context, or_none};
use crate::ctl::table::{duration, printable};
use crate::ctl::{CtlError, devices, json, policy};

pub(super) fn run(context: &Context) -> Result<Answer, CtlError> {
    let status = context.client.status(&context.call)?;
    Ok(context.answer(json::status(&status), status_text(&status)))
}

fn status_text(status: &DaemonStatus) -> String {
    let mut text = format!(
        "mlskeyd {}, process {}, up for {}\n{} keys, connections: {}, audit record {}\n",
        printable(&status.version),
        status.pid,
        duration(status.uptime),
        status.keys,
        status.connections,
        status.audit_sequence,
    );
    if let Some(reason) = &status.read_only {
        text.push_str(&format!("READ-ONLY: {}\n", printable(reason)));
    }
    text.push_str(&policy::in_force(&status.policies));
    text.push('\n');
    text.push_str(&or_none(
        &status.devices,
        devices::table(&status.devices),
        super::devices::NONE,
    ));
    text
}
