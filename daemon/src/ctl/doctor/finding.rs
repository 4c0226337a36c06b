//! What a check finds.

use serde_json::{Value, json};

use crate::ctl::table::{printable, wrapped};

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warn,
    /// It does not work, or keys are less safe than is promised.
    Fail,
    /// It cannot be seen, or is not asked for.
    Skip,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    /// The check's name, for programs.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What there is.
    pub(super) what: String,
    /// What to do about it.
    pub(super) advice: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, what, None)
    }

    /// Something that is not seen; `what` says why.
    pub(super) fn skip(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Verdict::Skip, what, None)
    }

    pub(super) fn warn(
        check: &'static str,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Warn, what, Some(advice.into()))
    }

    pub(super) fn fail(
        check: &'static str,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Fail, what, Some(advice.into()))
    }

    /// A failure whose text says what to do.
    pub(super) fn failed(check: &'static str, error: &dyn std::fmt::Display) -> Self {
        Self::new(check, Verdict::Fail, error.to_string(), None)
    }

    fn new(
        check: &'static str,
        verdict: Verdict,
        what: impl Into<String>,
        advice: Option<String>,
    ) -> Self {
        Self {
            check,
            verdict,
            what: what.into(),
            advice,
        }
    }

    fn json(&self) -> Value {
        json!({
            "check": self.check,
            "verdict": self.verdict.name(),
            "what": self.what,
            "do": self.advice,
        })
    }

    fn row(&self) -> [String; 2] {
        let what = match &self.advice {
            Some(advice) => format!("{} — {advice}", self.what),
            None => self.what.clone(),
        };
        [self.verdict.name().to_owned(), one_line(&what)]
    }
}

/// What some errors write on several lines.
fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    printable(&lines.join(" "))
}

/// All that was found: JSON, text, and whether nothing fails.
pub(super) fn report(findings: &[Finding], room: Option<usize>) -> (Value, String, bool) {
    let count = |verdict| findings.iter().filter(|it| it.verdict == verdict).count();
    let failed = count(Verdict::Fail);
    let listed: Vec<Value> = findings.iter().map(Finding::json).collect();
    let mut text = wrapped("", findings.iter().map(Finding::row), room);
    text.push_str(&format!(
        "{} ok, {} to look at, {failed} failed, {} not seen\n",
        count(Verdict::Ok),
        count(Verdict::Warn),
        count(Verdict::Skip),
    ));
    let json = json!({ "good": failed == 0, "findings": listed });
    (json, text, failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_a_failure_counts() {
        let findings = [
            Finding::ok("a", "one"),
            Finding::warn("b", "two\n  lines", "look"),
            Finding::skip("c", "\u{1b}three"),
        ];
        let (json, text, good) = report(&findings, None);
        assert!(good);
        assert_eq!(
            text,
            "ok    one\nwarn  two lines — look\nskip  \\u{1b}three\n1 ok, 1 to look at, 0 failed, 1 not seen\n"
        );
        assert_eq!(json["findings"][1]["do"], "look");
        let (json, _, good) = report(&[Finding::fail("d", "four", "mend it")], None);
        assert!(!good);
        assert_eq!(json["good"], false);
        assert_eq!(json["findings"][0]["verdict"], "fail");
    }
}
