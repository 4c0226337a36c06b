//! `doctor`.

use std::path::Path;

use mlskeyd_protocol::client::Doors;

use super::{Answer, Context};
use crate::ctl::{CtlError, doctor};

/// Looks at everything, and says what to do. `doors`: those of the command line, if a bus is
/// among them. The exit code is 1 if something fails.
pub(super) fn run(
    socket: Option<&Path>,
    doors: Option<Doors>,
    config: Option<&Path>,
    context: &Context,
) -> Result<Answer, CtlError> {
    let (json, text, good) = doctor::run(socket, doors, config)?;
    let answer = context.answer(json, text);
    let code = u8::from(!good);
    Ok(Answer { code, ..answer })
}
