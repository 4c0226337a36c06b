//! Policies that are not in force yet: asked beside those that are, and asked again about what
//! is on record.

#![allow(clippy::panic, clippy::unwrap_used)]

use mlskeyd::audit::{Entries, FILE_NAME, Record};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Stage};
use serde_json::json;

const NO_ADDING: &str = r#"@id("company/no-adding") @reason("nobody is added today")
forbid(principal, action == Action::"SignProposalAdd", resource)
when { context.in_commit };"#;

fn records(daemon: &Daemon) -> Vec<(u64, Record)> {
    let entries = Entries::open(&daemon.state().join(FILE_NAME)).unwrap();
    let entries = entries.map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.sequence, entry.record))
        .collect()
}

#[test]
fn what_other_policies_would_decide_is_told_before_they_are_in_force() {
    let stage = Stage::new(programs!());
    let candidate = stage.path("candidate");
    std::fs::create_dir(&candidate).unwrap();
    std::fs::write(candidate.join("90.cedar"), NO_ADDING).unwrap();
    let hub = Hub::start(&stage);
    let options = Options {
        extra: format!(
            "[policy]\ncandidate_dir = {:?}",
            candidate.display().to_string()
        ),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let [mut alice, mut bob] = Chat::pair(&stage, &daemon, &hub);
    alice.ok("send g hello");
    bob.ok("receive");

    // It went on, and is on record.
    let is_commit = |(_, record): &&(u64, Record)| record.action == "SignCommit";
    let all = records(&daemon);
    let commits: Vec<_> = all.iter().filter(is_commit).collect();
    let [(number, commit)] = commits[..] else {
        panic!("{commits:?}")
    };
    assert_eq!(commit.would_deny, ["candidate/company/no-adding"]);
    let others = all.iter().filter(|(_, it)| it.action != "SignCommit");
    assert!(
        others
            .clone()
            .all(|(_, record)| record.would_deny.is_empty())
    );

    // The same is found out afterwards, without a daemon.
    let log = daemon.state().join(FILE_NAME);
    let paths = [log, candidate].map(|path| path.display().to_string());
    let replay = |more: &[&str]| {
        let arguments = [&["policy", "replay", &paths[0], &paths[1]], more].concat();
        daemon.ctl(&arguments).unwrap()
    };
    let replayed = replay(&[]);
    let change = json!({
        "action": "SignCommit",
        "refused_by": null,
        "would_be_refused_by": "company/no-adding",
        "count": 1,
        "first": number,
    });
    assert_eq!(replayed["changes"], json!([change]));
    assert!(replayed["decisions"].as_u64().unwrap() >= 10, "{replayed}");
    let one = replay(&["--record", &number.to_string()]);
    assert_eq!(one["policies"], json!(["company/no-adding"]));
    assert_eq!(one["permitted_by"], "own-messages");
    assert_eq!(one["facts"]["context"]["members_added"], 1);
    let mut command = daemon.ctl_for_people(&["policy", "replay", &paths[0], &paths[1]]);
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(text.ends_with(" decisions, 1 would change\n"), "{text}");
}
