//! Policies as they are written: one statement each, with the line that it begins at.

use crate::problem::{Place, lines};

/// One policy's text.
pub(crate) struct Statement {
    pub(crate) place: Place,
    pub(crate) text: String,
}

/// The statements of a file, each to its semicolon. What is left over at the end is one,
/// unless it is empty but for comments.
pub(crate) fn split(file: &str, text: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(start) = start(rest) {
        let (before, from_here) = rest.split_at(start);
        line = lines(before).saturating_add(line);
        let (statement, after) = from_here.split_at(end(from_here));
        statements.push(Statement {
            place: Place {
                file: file.to_owned(),
                line,
            },
            text: statement.to_owned(),
        });
        line = lines(statement).saturating_add(line);
        rest = after;
    }
    statements
}

/// Where a statement begins: after white space and comments.
fn start(text: &str) -> Option<usize> {
    let mut offset = 0;
    loop {
        let rest = text.get(offset..)?;
        let trimmed = rest.trim_start();
        offset = offset.checked_add(rest.len().checked_sub(trimmed.len())?)?;
        if !trimmed.starts_with("//") {
            return (!trimmed.is_empty()).then_some(offset);
        }
        offset = offset.checked_add(trimmed.find('\n').unwrap_or(trimmed.len()))?;
    }
}

/// Where it ends: after its semicolon, which is in no string and no comment.
fn end(text: &str) -> usize {
    let mut characters = text.char_indices().peekable();
    let (mut in_string, mut in_comment) = (false, false);
    while let Some((offset, character)) = characters.next() {
        match character {
            '\n' => in_comment = false,
            _ if in_comment => {}
            '\\' if in_string => drop(characters.next()),
            '"' => in_string = !in_string,
            ';' if !in_string => return offset.saturating_add(1),
            '/' if !in_string && characters.peek().is_some_and(|(_, next)| *next == '/') => {
                in_comment = true;
            }
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_at_semicolons_of_their_own() {
        let text = "// one; not this\n\npermit(a) when { x == \";\\\";\" }; // two; here\nforbid\n(b)\n;\n// over";
        let found = split("f", text);
        let found: Vec<_> = found
            .iter()
            .map(|statement| (statement.place.line, statement.text.as_str()))
            .collect();
        let first = "permit(a) when { x == \";\\\";\" };";
        assert_eq!(found, [(3, first), (4, "forbid\n(b)\n;")]);
    }

    #[test]
    fn what_has_no_end_is_a_statement_and_what_is_empty_is_none() {
        assert_eq!(split("f", "permit(a) // x")[0].text, "permit(a) // x");
        assert!(split("f", " \n// only this").is_empty());
        assert!(split("f", "").is_empty());
    }
}
