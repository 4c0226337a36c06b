//! `doctor`.

use std::path::Path;

use super::{Answer, Context};
use crate::ctl::{CtlError, doctor};

/// Looks at everything, and says what to do. The exit code is 1 if something fails.
pub(super) fn run(
    socket: Option<&Path>,
    config: Option<&Path>,
    context: &Context,
) -> Result<Answer, CtlError> {
    let (json, text, good) = doctor::run(socket, config)?;
    let answer = context.answer(json, text);
    let code = u8::from(!good);
    Ok(Answer { code, ..answer })
}
