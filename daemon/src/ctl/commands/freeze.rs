//! `freeze`, `thaw` and `frozen`.

use mlskeyd_protocol::v1::{Freeze, Frozen, ReadFrozen, Thaw};

use super::{Answer, Context, or_none};
use crate::ctl::table::printable;
use crate::ctl::{CtlError, json};
use crate::freeze_target::TargetCommand;

/// Freezes something.
pub(super) fn freeze(
    target: &TargetCommand,
    reason: &str,
    context: &Context,
) -> Result<Answer, CtlError> {
    let request = Freeze {
        target: target.target(),
        reason: reason.to_owned(),
    };
    let now = context.client.freeze(request, &context.call)?;
    Ok(answer(&now, context))
}

/// Thaws it.
pub(super) fn thaw(target: &TargetCommand, context: &Context) -> Result<Answer, CtlError> {
    let target = target.target();
    let now = context.client.thaw(Thaw { target }, &context.call)?;
    Ok(answer(&now, context))
}

/// Shows what is frozen.
pub(super) fn frozen(context: &Context) -> Result<Answer, CtlError> {
    let now = context.client.frozen(ReadFrozen {}, &context.call)?;
    Ok(answer(&now, context))
}

fn answer(now: &Frozen, context: &Context) -> Answer {
    let json =
        |it: &Freeze| serde_json::json!({ "target": it.target.to_string(), "reason": it.reason });
    let lines = now.frozen.iter().map(|it| {
        if it.reason.is_empty() {
            return format!("{}\n", it.target);
        }
        format!("{}: {}\n", it.target, printable(&it.reason))
    });
    let text: String = lines.collect();
    context.answer(
        json::list(&now.frozen, json),
        or_none(&now.frozen, text, "nothing is frozen\n"),
    )
}
