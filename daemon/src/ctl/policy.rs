//! Policies, for those who write them: what is wrong with them, what they answer, and what
//! they refused.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mlskeyd_policies::cases::{self, Case};
use mlskeyd_policies::{Problem, Set};
use mlskeyd_protocol::v1::{PoliciesInForce, Refusals};
use serde_json::{Value, json};

use super::table::{date, printable};
use super::{CtlError, manifest};
use crate::policy_files::manifest::MANIFEST;
use crate::policy_files::{Known, PolicyDirs, PolicyError, PolicyFiles};
use crate::signers::Signers;

/// What was looked at: JSON, text, and whether it is as it should be.
pub(super) struct Shown {
    pub(super) json: Value,
    pub(super) text: String,
    pub(super) is_good: bool,
}

/// What is in force, and what somebody should see to.
pub(super) fn in_force(now: &PoliciesInForce) -> String {
    let mut text = format!("{} policies are in force", now.count);
    if let Some(signed) = &now.signed {
        let signer = printable(&signed.signer);
        let _ = write!(text, ", serial {}, signed by {signer}", signed.serial);
    }
    text.push('\n');
    for warning in &now.warnings {
        let _ = writeln!(text, "WARNING: {}", printable(warning));
    }
    text
}

/// Checks the policies of a directory, together with the vendor's, and its manifest if it
/// has one. Which identities there are only the daemon knows.
pub(super) fn check(
    vendor: &Path,
    local: &Path,
    signers: Option<&Signers>,
    known: &Known,
) -> Result<Shown, CtlError> {
    let manifest = manifest::check(local, signers)?;
    let (count, problems) = match read(vendor, local)?.set() {
        Ok(set) => (
            set.len(),
            set.lint(&|kind, name| known.is_there(kind, name)),
        ),
        Err(PolicyError::Refused(problems)) => (0, problems),
        Err(error) => return Err(CtlError::Policies(error)),
    };
    let is_good = !problems.iter().any(|problem| problem.is_error)
        && manifest.as_ref().is_none_or(|it| it.is_good);
    let mut text = manifest
        .as_ref()
        .map_or_else(String::new, |it| it.text.clone());
    for problem in &problems {
        let _ = writeln!(text, "{problem}");
    }
    let last = if is_good {
        format!("{count} policies, no errors")
    } else {
        "the policies are refused: those that are in force stay so".to_owned()
    };
    let _ = writeln!(text, "{last}");
    let listed: Vec<Value> = problems.iter().map(to_json).collect();
    Ok(Shown {
        json: json!({ "good": is_good, "policies": count, "problems": listed,
                      "manifest": manifest.map(|it| it.json) }),
        text,
        is_good,
    })
}

fn to_json(problem: &Problem) -> Value {
    json!({
        "file": problem.file,
        "line": problem.line,
        "level": if problem.is_error { "error" } else { "lint" },
        "message": problem.message,
    })
}

/// Has policies answer the cases of a directory, or their own if none is named.
pub(super) fn test(vendor: &Path, dir: Option<&Path>) -> Result<Shown, CtlError> {
    let nowhere = PathBuf::new();
    let set = read(vendor, dir.unwrap_or(&nowhere))?.set();
    let set = set.map_err(CtlError::Policies)?;
    let cases = match dir {
        Some(dir) => cases_of(dir)?,
        None => cases::read("default", cases::DEFAULT).map_err(CtlError::Cases)?,
    };
    Ok(tell(&set, &cases))
}

fn tell(set: &Set, cases: &[Case]) -> Shown {
    let mut text = String::new();
    let mut listed = Vec::new();
    let mut failed: usize = 0;
    for case in cases {
        let why = case.check(set).err();
        if let Some(why) = &why {
            failed = failed.saturating_add(1);
            let _ = writeln!(text, "FAILED  {why}");
        }
        listed.push(json!({ "name": case.name, "passed": why.is_none(), "why": why }));
    }
    let passed = cases.len().saturating_sub(failed);
    let _ = writeln!(text, "{passed} passed, {failed} failed");
    Shown {
        json: json!({ "passed": passed, "failed": failed, "cases": listed }),
        text,
        is_good: failed == 0,
    }
}

/// The last refusal, or all that are remembered; or the one request that was asked for.
pub(super) fn explain(asked: &Refusals, all: bool) -> Shown {
    let count = if all { asked.explained.len() } else { 1 };
    let shown: Vec<_> = asked.explained.iter().take(count).collect();
    let mut text = String::new();
    let mut listed = Vec::new();
    for request in &shown {
        let facts: Value = serde_json::from_str(&request.facts).unwrap_or(Value::Null);
        let was = request.refused.as_ref().map_or_else(
            || "it was permitted".to_owned(),
            |by| {
                format!(
                    "refused by {}: {}",
                    printable(&by.policy),
                    printable(&by.reason)
                )
            },
        );
        let now = if request.by_rule {
            "no policy can lift that rule".to_owned()
        } else {
            said(&request.policies, request.permitted_by.as_deref())
        };
        let (date, action) = (date(request.time), printable(&request.action));
        let _ = writeln!(text, "{date}  {action}\n  {was}\n  now: {now}");
        if !facts.is_null() {
            text.push_str(&pretty(&facts));
        }
        let refused = request.refused.as_ref();
        listed.push(json!({
            "time": request.time,
            "action": request.action,
            "refused": refused.map(|by| json!({ "policy": by.policy, "reason": by.reason })),
            "by_rule": request.by_rule,
            "policies": request.policies,
            "permitted_by": request.permitted_by,
            "facts": facts,
        }));
    }
    if shown.is_empty() {
        text.push_str(
            "nothing was refused since the daemon started; --record explains what is on record\n",
        );
    }
    Shown {
        json: listed.into(),
        text,
        is_good: true,
    }
}

/// Facts for a person: what an app wrote in them moves no cursor.
pub(super) fn pretty(facts: &Value) -> String {
    let lines = format!("{facts:#}");
    lines.lines().map(|line| printable(line) + "\n").collect()
}

/// What policies say to a request: which ones refuse it, and which one would permit it.
pub(super) fn said(refused_by: &[String], permitted_by: Option<&str>) -> String {
    let policies = refused_by.join(", ");
    match (policies.as_str(), permitted_by) {
        ("", Some(policy)) => format!("permitted by {policy}"),
        ("", None) => "no policy permits it".to_owned(),
        (policies, Some(policy)) => {
            format!("refused by {policies}; without them it is permitted by {policy}")
        }
        (policies, None) => format!("refused by {policies}; without them no policy permits it"),
    }
}

pub(super) fn read(vendor: &Path, local: &Path) -> Result<PolicyFiles, CtlError> {
    let dirs = PolicyDirs {
        vendor: vendor.to_owned(),
        local: local.to_owned(),
        candidate: None,
    };
    PolicyFiles::read(&dirs).map_err(CtlError::Policies)
}

/// The cases of all files `*.toml`.
fn cases_of(dir: &Path) -> Result<Vec<Case>, CtlError> {
    let failed = |error: std::io::Error| CtlError::File {
        path: dir.to_owned(),
        why: error.to_string(),
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_manifest = path.file_name().is_some_and(|name| name == MANIFEST);
        if path.extension().is_some_and(|end| end == "toml") && !is_manifest {
            paths.push(path);
        }
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        let read = cases::read(&path.display().to_string(), &text);
        all.append(&mut read.map_err(CtlError::Cases)?);
    }
    Ok(all)
}
