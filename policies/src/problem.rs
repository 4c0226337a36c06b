//! What is wrong with policies, and where.

use std::fmt;

/// Something that is wrong, or looks so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file's name in its directory.
    pub file: String,
    /// The line, from 1; 0 if it is about the whole.
    pub line: usize,
    /// Is the set refused for it?
    pub is_error: bool,
    /// What it is, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.is_error { "error" } else { "lint" };
        if self.line == 0 {
            return write!(f, "{}: {level}: {}", self.file, self.message);
        }
        write!(f, "{}:{}: {level}: {}", self.file, self.line, self.message)
    }
}

/// Where a statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) line: usize,
}

impl Place {
    pub(crate) fn error(&self, message: impl Into<String>) -> Problem {
        self.problem(true, message.into())
    }

    pub(crate) fn lint(&self, message: impl Into<String>) -> Problem {
        self.problem(false, message.into())
    }

    fn problem(&self, is_error: bool, message: String) -> Problem {
        Problem {
            file: self.file.clone(),
            line: self.line,
            is_error,
            message,
        }
    }

    /// What the policy language says, at the line within the statement that it says it of.
    pub(crate) fn diagnosed(&self, statement: &str, said: &dyn miette::Diagnostic) -> Problem {
        let offset = said
            .labels()
            .and_then(|mut labels| labels.next())
            .map_or(0, |label| label.offset());
        let before = statement.get(..offset).unwrap_or_default();
        let line = self.line.saturating_add(lines(before));
        let mut message = said.to_string();
        if let Some(help) = said.help() {
            message = format!("{message}; {help}");
        }
        Problem {
            line,
            ..self.error(message)
        }
    }
}

/// How many line ends there are.
pub(crate) fn lines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}
