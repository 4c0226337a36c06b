//! `mlskeyctl agent`: finds the person of a login session when the daemon waits for one.
//!
//! One thread looks at what waits (`watch`), another asks the person, by pinentry, for
//! one PIN at a time, and a third shows what is to be touched and what was refused
//! (`notices`). A question or notice whose prompt goes away is taken back.

mod notices;
mod pinentry;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use mlskeyd_protocol::client::{AgentClient, Call, CallError, ClientConfig, Doors};
use mlskeyd_protocol::v1::{AnswerPrompt, FailureCode, Prompt, PromptKind};

use self::notices::Notices;
use self::pinentry::{Asked, Pinentry};
use self::watch::Watch;
use super::CtlError;

/// Runs until it is ended.
pub(super) fn run(doors: Doors, pinentry: PathBuf) -> Result<std::convert::Infallible, CtlError> {
    let software = concat!("mlskeyctl-agent/", env!("CARGO_PKG_VERSION"));
    let client = AgentClient::new(ClientConfig::through(doors, software));
    let notices = Notices::begin().map_err(CtlError::Thread)?;
    let watch = Watch::begin(client.clone(), notices).map_err(CtlError::Thread)?;
    say("looking for what waits for a person");
    loop {
        let prompt = watch.next();
        match prompt.kind {
            PromptKind::Pin => ask(&client, &pinentry, &watch, &prompt)?,
            PromptKind::Touch | PromptKind::Refusal => {
                // The watch takes it back.
                watch.notices().show(prompt.id, prompt.text);
                watch.done_with(prompt.id);
            }
        }
    }
}

/// Asks for a PIN until it is right, or nobody wants to give one, or nothing waits for
/// it any more.
fn ask(
    client: &AgentClient,
    program: &std::path::Path,
    watch: &Arc<Watch>,
    prompt: &Prompt,
) -> Result<(), CtlError> {
    let call = Call::default();
    let mut wrong = None;
    loop {
        let pinentry = Pinentry::start(program).map_err(|error| CtlError::Pinentry {
            path: program.to_owned(),
            why: error.to_string(),
        })?;
        let asking = watch.asking(prompt.id, pinentry.ender());
        let Some(asking) = asking else { return Ok(()) };
        let asked = pinentry.ask(&prompt.text, &prompt.device, wrong.as_deref());
        drop(asking);
        let pin = match asked {
            Asked::Pin(pin) => pin,
            Asked::Cancelled => {
                if watch.waits(prompt.id) {
                    note(client.decline_prompt(prompt.id, &call));
                }
                watch.done_with(prompt.id);
                return Ok(());
            }
        };
        let answer = AnswerPrompt {
            prompt: prompt.id,
            pin,
        };
        match client.answer_prompt(answer, &call) {
            Ok(()) => {
                watch.done_with(prompt.id);
                return Ok(());
            }
            Err(CallError::Failure(failure)) if failure.code == FailureCode::DeviceLocked => {
                say(&failure.message);
                // Whoever has one try left does that on purpose, by another command.
                if failure.message.contains("one try left") || failure.message.contains("blocked") {
                    note(client.decline_prompt(prompt.id, &call));
                    watch.done_with(prompt.id);
                    return Ok(());
                }
                wrong = Some(failure.message);
            }
            Err(error) => {
                say(&error.to_string());
                watch.done_with(prompt.id);
                return Ok(());
            }
        }
    }
}

/// What could not be told the daemon is nothing that this can mend.
fn note(result: Result<(), CallError>) {
    if let Err(error) = result {
        say(&error.to_string());
    }
}

fn say(text: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "mlskeyctl: {}",
        super::table::printable(text)
    );
}
