//! docs/policy-reference.md, made of the schema's own words.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cedar_policy::SchemaFragment;
use serde_json::Value;

use crate::SCHEMA;

const HEAD: &str = "\
# What policies can speak of

<!-- Made of policies/src/schema.cedarschema: `cargo test -p mlskeyd-policies -- --ignored record_the_reference` -->

[Policies](policies.md) name entities, actions, and what is in the context of each action. Within a major
version of mlskeyd there will be more of these, and none will go away. *Chosen by the app* says what an app,
also one that somebody has taken over, can make it say: all else is the daemon's own finding, or the system's.
";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy-reference.md")
}

fn reference() -> String {
    let (schema, _) = SchemaFragment::from_cedarschema_str(SCHEMA).unwrap();
    let json = schema.to_json_value().unwrap();
    let all = &json[""];
    let mut out = HEAD.to_owned();
    out.push_str("\n## Entities\n\n| entity | is | is in |\n|---|---|---|\n");
    for (name, entity) in all["entityTypes"].as_object().unwrap() {
        let parents = entity["memberOfTypes"].as_array();
        let parents = parents.into_iter().flatten().map(kind);
        let parents: Vec<_> = parents.collect();
        let _ = writeln!(
            out,
            "| `{name}` | {} | {} |",
            doc(entity),
            parents.join(", ")
        );
    }
    for (name, entity) in all["entityTypes"].as_object().unwrap() {
        attributes(
            &mut out,
            &format!("Attributes of `{name}`"),
            &entity["shape"],
        );
    }
    out.push_str("\n## Actions\n\n| action | is in | resource | context |\n|---|---|---|---|\n");
    let mut groups = String::new();
    for (name, action) in all["actions"].as_object().unwrap() {
        let parents = action["memberOf"].as_array().into_iter().flatten();
        let parents: Vec<_> = parents
            .map(|parent| format!("`{}`", parent["id"].as_str().unwrap()))
            .collect();
        let parents = parents.join(", ");
        let applies = &action["appliesTo"];
        match applies["resourceTypes"].as_array() {
            Some(resources) if !resources.is_empty() => {
                let resources: Vec<_> = resources.iter().map(kind).collect();
                let context = kind(&applies["context"]["type"]);
                let _ = writeln!(
                    out,
                    "| `{name}` | {parents} | {} | {context} |",
                    resources.join(", ")
                );
            }
            _ => {
                let _ = writeln!(groups, "| `{name}` | {parents} | {} |", doc(action));
            }
        }
    }
    out.push_str("\nGroups of actions, for `action in Action::\"...\"`:\n\n| group | is in | is |\n|---|---|---|\n");
    out.push_str(&groups);
    out.push_str("\n## Contexts\n");
    for (name, record) in all["commonTypes"].as_object().unwrap() {
        attributes(&mut out, &format!("`{name}`: {}", doc(record)), record);
    }
    out
}

fn attributes(out: &mut String, title: &str, record: &Value) {
    let Some(attributes) = record["attributes"].as_object().filter(|it| !it.is_empty()) else {
        return;
    };
    let _ = writeln!(out, "\n### {}\n", title.trim_end_matches('.'));
    out.push_str(
        "| attribute | type | meaning | there | chosen by the app |\n|---|---|---|---|---|\n",
    );
    for (name, attribute) in attributes {
        let there = if attribute["required"] == false {
            "sometimes: ask `has`"
        } else {
            "always"
        };
        let app = attribute["annotations"]["app"].as_str().unwrap_or("no");
        let meaning = match doc(attribute) {
            meaning if meaning.is_empty() => "described for itself".to_owned(),
            meaning => meaning,
        };
        let _ = writeln!(
            out,
            "| `{name}` | {} | {meaning} | {there} | {app} |",
            of_type(attribute)
        );
    }
}

fn doc(of: &Value) -> String {
    of["annotations"]["doc"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn of_type(attribute: &Value) -> String {
    let simple = |attribute: &Value| {
        let name = attribute["name"].as_str().or(attribute["type"].as_str());
        name.unwrap_or_default()
            .trim_start_matches("__cedar::")
            .to_owned()
    };
    match attribute["type"].as_str() {
        Some("Set") => format!("`Set<{}>`", simple(&attribute["element"])),
        _ => format!("`{}`", simple(attribute)),
    }
}

fn kind(name: &Value) -> String {
    format!("`{}`", name.as_str().unwrap_or_default())
}

#[test]
fn the_reference_is_what_the_schema_says() {
    let written = std::fs::read_to_string(path()).unwrap();
    assert_eq!(
        written,
        reference(),
        "`cargo test -p mlskeyd-policies -- --ignored record_the_reference` writes it anew"
    );
}

#[test]
#[ignore = "writes docs/policy-reference.md"]
fn record_the_reference() {
    std::fs::write(path(), reference()).unwrap();
}
