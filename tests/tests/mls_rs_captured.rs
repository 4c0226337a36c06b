//! The parser against what mls-rs, which shares no code with OpenMLS, gave its signer and opened. It was recorded by
//! `tests/captured/mls-rs/recorder`, so that mls-rs is not needed here.

use std::collections::BTreeSet;

use mlskeyd::mls::{
    LeafNodePayload, OwnLeaf, Sender, Signable, WireFormat, binding, scheme_of_cipher_suite,
};
use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::SignatureScheme;
use mlskeyd_tests::captures::{
    self, Capture, KINDS_OF_OWN_LEAVES, Registry, kind_of, only_whole, opens_only_whole,
    own_leaf_is_signed,
};

fn captured() -> Vec<Capture> {
    let captured = captures::read("mls-rs");
    let suites: Vec<u16> = captured.iter().map(|capture| capture.suite).collect();
    assert_eq!(suites, [1, 2, 3, 7]);
    captured
}

fn scheme(capture: &Capture) -> SignatureScheme {
    scheme_of_cipher_suite(capture.suite).unwrap()
}

#[test]
fn everything_that_mls_rs_signs_is_read_to_the_last_byte() {
    let (mut kinds, mut senders) = (BTreeSet::new(), BTreeSet::new());
    for capture in captured() {
        for payload in &capture.signed {
            let signable = Signable::parse(payload);
            assert!(
                !matches!(signable, Signable::Unknown(_)),
                "{signable:?} is {}",
                hex::encode(payload)
            );
            kinds.extend(signable.actions());
            assert!(
                signable
                    .cipher_suite()
                    .is_none_or(|suite| suite == capture.suite)
            );
            if let Signable::FramedContent(content) = &signable {
                let sender = match content.sender {
                    Sender::Member { .. } => "member",
                    Sender::External { .. } => "external",
                    Sender::NewMemberProposal => "new member, by proposal",
                    Sender::NewMemberCommit { .. } => "new member, by commit",
                };
                senders.insert((sender, content.wire_format == WireFormat::Private));
            }
        }
    }
    let expected = BTreeSet::from([
        Action::SignApplicationMessage,
        Action::SignCommit,
        Action::SignProposalAdd,
        Action::SignProposalUpdate,
        Action::SignProposalRemove,
        Action::SignProposalPreSharedKey,
        Action::SignProposalReInit,
        Action::SignProposalExternalInit,
        Action::SignProposalGroupContextExtensions,
        Action::SignKeyPackage,
        Action::SignLeafNode,
        Action::SignGroupInfo,
    ]);
    assert_eq!(kinds, expected);
    let expected = BTreeSet::from([
        ("member", false),
        ("member", true),
        ("external", false),
        ("new member, by proposal", false),
        ("new member, by commit", false),
    ]);
    assert_eq!(senders, expected);
}

/// By itself, in a commit, and mls-rs's own number of SelfRemove (0xf003), which has no content to be read as one of a
/// proposal for private use; in each of the longer lives.
#[test]
fn a_proposal_of_a_type_for_private_use_is_known_as_one() {
    let actions = |payload: &Vec<u8>| Signable::parse(payload).actions();
    let found: Vec<Vec<_>> = captured()
        .iter()
        .map(|capture| capture.custom.iter().map(actions).collect())
        .collect();
    let expected = [
        vec![Action::SignProposalPrivateUse],
        vec![Action::SignCommit, Action::SignProposalPrivateUse],
        vec![Action::SignUnknown],
    ];
    assert_eq!(
        found,
        [expected.to_vec(), expected.to_vec(), vec![], vec![]]
    );
}

#[test]
fn whatever_was_cut_or_extended_is_unknown() {
    for capture in captured() {
        for payload in capture.signed.iter().chain(&capture.custom) {
            only_whole(payload);
        }
    }
}

#[test]
fn everything_that_mls_rs_opens_is_known_and_yields_what_it_must() {
    let mut kinds = BTreeSet::new();
    for capture in captured() {
        for open in &capture.opened {
            kinds.insert(opens_only_whole(capture.suite, open));
        }
    }
    assert_eq!(
        kinds,
        BTreeSet::from([Action::OpenWelcome, Action::OpenPathSecret])
    );
}

/// The leaf of source commit that was signed before with this leaf's key: an external commit does not tell its index.
fn index_of(own_leaf: OwnLeaf<'_, '_>, before: &[Vec<u8>]) -> Option<u32> {
    let wanted = &own_leaf.leaf_node().payload;
    before
        .iter()
        .find_map(|payload| match Signable::parse(payload) {
            Signable::LeafNode(tbs) if tbs.payload == *wanted => Some(tbs.position?.leaf_index),
            _ => None,
        })
}

#[test]
fn a_leaf_within_a_message_is_the_one_that_was_signed() {
    let mut seen = BTreeSet::new();
    for capture in captured() {
        for (index, payload) in capture.signed.iter().enumerate() {
            let before = &capture.signed[..index];
            let signable = Signable::parse(payload);
            let Some(own_leaf) = signable.own_leaf() else {
                continue;
            };
            own_leaf_is_signed(
                scheme(&capture),
                own_leaf,
                || index_of(own_leaf, before).unwrap(),
                |content| before.iter().any(|payload| payload == content),
            );
            seen.insert(kind_of(own_leaf));
        }
    }
    assert_eq!(seen.len(), KINDS_OF_OWN_LEAVES, "{seen:?}");
}

#[test]
fn a_key_package_of_somebody_who_is_added_is_the_one_that_was_signed() {
    let mut added = 0;
    for capture in captured() {
        for payload in &capture.signed {
            let Signable::FramedContent(content) = Signable::parse(payload) else {
                continue;
            };
            for key_package in content.added() {
                let content = key_package.signed_content().unwrap();
                assert!(capture.signed.contains(&content));
                added += 1;
            }
        }
    }
    assert!(added > 0);
}

fn leaf_of<'s, 'a>(signable: &'s Signable<'a>) -> Option<&'s LeafNodePayload<'a>> {
    match signable {
        Signable::LeafNode(tbs) => Some(&tbs.payload),
        other => Some(&other.own_leaf()?.leaf_node().payload),
    }
}

/// All of it as if one app had signed it, with each key and each name in its turn.
#[test]
fn binding_refuses_nothing_that_is_honest() {
    for capture in captured() {
        let registry = Registry::new(scheme(&capture), |_| true);
        for payload in &capture.signed {
            let signable = Signable::parse(payload);
            let leaf = leaf_of(&signable);
            let signer = binding::Signer {
                scheme: scheme(&capture),
                public_key: leaf.map_or(&[], |leaf| leaf.signature_key),
                credential: leaf.map_or(&[], |leaf| leaf.credential.raw),
            };
            let changes = binding::check(&signable, signer, &registry);
            registry.apply(changes.unwrap_or_else(|why| panic!("{why}: {signable:?}")));
            assert_eq!(binding::check(&signable, signer, &registry), Ok(Vec::new()));
        }
    }
}
