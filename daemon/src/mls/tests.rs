//! Structures that contradict themselves, and bytes that are no structure at all.

use mlskeyd_policies::Action;
use proptest::prelude::*;

use super::signable::sign_content;
use super::*;
use mlskeyd_protocol::app_content::write_opaque;

const FRAMED_CONTENT: &[u8] = b"MLS 1.0 FramedContentTBS";

fn opaque(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_opaque(&mut out, bytes).unwrap();
    out
}

/// A message to group "g" in epoch 7.
fn framed(wire_format: u8, sender: &[u8], body: &[u8], context: &[u8]) -> Vec<u8> {
    let content = [
        &[0, 1, 0, wire_format, 1, b'g', 0, 0, 0, 0, 0, 0, 0, 7],
        sender,
        &[0],
        body,
        context,
    ]
    .concat();
    sign_content(FRAMED_CONTENT, &content).unwrap()
}

fn context(group: u8, epoch: u8) -> Vec<u8> {
    vec![0, 1, 0, 1, 1, group, 0, 0, 0, 0, 0, 0, 0, epoch, 0, 0, 0]
}

const MEMBER: &[u8] = &[1, 0, 0, 0, 3];
const EXTERNAL: &[u8] = &[2, 0, 0, 0, 3];
const NEW_MEMBER_PROPOSAL: &[u8] = &[3];
const NEW_MEMBER_COMMIT: &[u8] = &[4];
const TEXT: &[u8] = &[1, 2, b'h', b'i'];
const REMOVE: &[u8] = &[2, 0, 3, 0, 0, 0, 1];
const SELF_REMOVE: &[u8] = &[2, 0, 10];
const EXTERNAL_INIT: &[u8] = &[2, 0, 6, 0];
const COMMIT: &[u8] = &[3, 0, 0];

fn why(bytes: &[u8]) -> Option<ParseError> {
    match Signable::parse(bytes) {
        Signable::Unknown(unknown) => Some(unknown.why),
        _ => None,
    }
}

fn contradicts_itself(bytes: &[u8]) -> bool {
    matches!(why(bytes), Some(ParseError::Contradiction(_)))
}

#[test]
fn group_and_epoch_agree_with_the_group_context() {
    assert_eq!(why(&framed(2, MEMBER, TEXT, &context(b'g', 7))), None);
    assert!(contradicts_itself(&framed(
        2,
        MEMBER,
        TEXT,
        &context(b'h', 7)
    )));
    assert!(contradicts_itself(&framed(
        2,
        MEMBER,
        TEXT,
        &context(b'g', 8)
    )));
}

#[test]
fn application_data_is_private_and_from_members() {
    let g = context(b'g', 7);
    assert!(contradicts_itself(&framed(1, MEMBER, TEXT, &g)));
    assert!(contradicts_itself(&framed(2, EXTERNAL, TEXT, &[])));
    assert!(contradicts_itself(&framed(1, EXTERNAL, TEXT, &[])));
}

#[test]
fn only_members_send_private_messages() {
    let g = context(b'g', 7);
    assert_eq!(why(&framed(1, EXTERNAL, REMOVE, &[])), None);
    assert!(contradicts_itself(&framed(2, EXTERNAL, REMOVE, &[])));
    assert_eq!(why(&framed(2, MEMBER, REMOVE, &g)), None);
}

#[test]
fn each_sender_sends_what_it_may() {
    let g = context(b'g', 7);
    assert_eq!(why(&framed(1, MEMBER, COMMIT, &g)), None);
    assert_eq!(why(&framed(1, MEMBER, SELF_REMOVE, &g)), None);
    for (sender, body, context) in [
        (EXTERNAL, COMMIT, &[][..]),
        (EXTERNAL, SELF_REMOVE, &[]),
        (NEW_MEMBER_PROPOSAL, REMOVE, &[]),
        (NEW_MEMBER_PROPOSAL, COMMIT, &[]),
        (NEW_MEMBER_COMMIT, REMOVE, &g),
        // External commits without a path.
        (NEW_MEMBER_COMMIT, COMMIT, &g),
        (NEW_MEMBER_COMMIT, &[3, 4, 1, 0, 6, 0, 0], &g),
        (MEMBER, EXTERNAL_INIT, &g),
        (MEMBER, &[3, 4, 1, 0, 6, 0, 0], &g),
        (MEMBER, &[3, 3, 1, 0, 10, 0], &g),
    ] {
        let bytes = framed(1, sender, body, context);
        assert!(contradicts_itself(&bytes), "{:?}", Signable::parse(&bytes));
    }
}

#[test]
fn unknown_numbers_are_not_supported() {
    let g = context(b'g', 7);
    for bytes in [
        framed(3, MEMBER, TEXT, &g),
        framed(2, &[5], TEXT, &g),
        framed(2, MEMBER, &[4, 0], &g),
        framed(2, MEMBER, &[2, 0, 8, 0], &g),
        framed(2, MEMBER, &[2, 0xef, 0xff, 0], &g),
        framed(2, MEMBER, &[3, 0, 2], &g),
    ] {
        assert!(matches!(why(&bytes), Some(ParseError::Unsupported { .. })));
    }
}

#[test]
fn proposals_for_private_use_are_read_with_their_type() {
    let g = context(b'g', 7);
    for last in [0x00, 0xff] {
        let bytes = framed(2, MEMBER, &[2, 0xf0 | last, last, 1, 9], &g);
        let Signable::FramedContent(content) = Signable::parse(&bytes) else {
            panic!("{bytes:?}")
        };
        let proposal_type = u16::from_be_bytes([0xf0 | last, last]);
        let content: Vec<_> = content.proposals().cloned().collect();
        assert_eq!(
            content,
            [Proposal::PrivateUse {
                proposal_type,
                content: &[9]
            }]
        );
    }
    // Without its length it cannot be told from what follows.
    let bytes = framed(2, MEMBER, &[2, 0xf0, 1, 2, 9], &g);
    assert!(matches!(Signable::parse(&bytes), Signable::Unknown(_)));
}

#[test]
fn an_unknown_keeps_its_label_if_it_is_short() {
    let unknown = |bytes: &[u8]| match Signable::parse(bytes) {
        Signable::Unknown(unknown) => (unknown.label.map(<[u8]>::len), unknown.why),
        known => panic!("{known:?}"),
    };
    let labelled = |length| sign_content(&vec![b'x'; length], b"").unwrap();
    assert_eq!(
        unknown(&labelled(255)),
        (Some(255), ParseError::UnknownLabel)
    );
    assert!(matches!(
        unknown(&labelled(256)),
        (None, ParseError::TooMany { .. })
    ));
    assert_eq!(unknown(b""), (None, ParseError::Truncated));
    assert_eq!(
        unknown(&opaque(FRAMED_CONTENT)),
        (Some(FRAMED_CONTENT.len()), ParseError::Truncated)
    );
}

#[test]
fn a_plaintext_does_not_show_in_debug_output() {
    let bytes = framed(2, MEMBER, TEXT, &context(b'g', 7));
    let shown = format!("{:?}", Signable::parse(&bytes));
    assert!(shown.contains("ApplicationData(2 bytes)"));
    assert!(!shown.contains("104, 105"));
}

#[test]
fn a_commit_needs_the_permits_of_its_proposals() {
    let removes = opaque(&[1, 0, 3, 0, 0, 0, 1].repeat(3));
    let body = [&[3][..], &removes, &[0]].concat();
    let bytes = framed(1, MEMBER, &body, &context(b'g', 7));
    assert_eq!(
        Signable::parse(&bytes).actions(),
        [Action::SignCommit, Action::SignProposalRemove]
    );
}

/// Every truncation and every byte more is unknown.
fn only_whole(body: &[u8]) {
    let g = context(b'g', 7);
    assert_eq!(why(&framed(1, MEMBER, body, &g)), None);
    for length in 3..body.len() {
        assert!(
            why(&framed(1, MEMBER, &body[..length], &g)).is_some(),
            "{length}"
        );
    }
    assert!(why(&framed(1, MEMBER, &[body, &[0]].concat(), &g)).is_some());
}

#[test]
fn a_reinit_names_another_group_of_the_same_version() {
    let reinit = |version: u8| {
        let id = opaque(b"next");
        [&[2, 0, 5][..], &id, &[0, version, 0, 2, 0]].concat()
    };
    only_whole(&reinit(1));
    let g = context(b'g', 7);
    let bytes = framed(1, MEMBER, &reinit(1), &g);
    assert_eq!(Signable::parse(&bytes).action(), Action::SignProposalReInit);
    assert!(why(&framed(1, MEMBER, &reinit(2), &g)).is_some());
}

#[test]
fn pre_shared_keys_are_external_or_of_a_resumption() {
    let nonce = opaque(&[9; 32]);
    let external = [&[2, 0, 4, 1][..], &opaque(b"id"), &nonce].concat();
    let epoch = 5_u64.to_be_bytes();
    let resumption = |usage| [&[2, 0, 4, 2, usage][..], &opaque(b"g"), &epoch, &nonce].concat();
    for body in [external, resumption(1)] {
        only_whole(&body);
        let bytes = framed(1, MEMBER, &body, &context(b'g', 7));
        let kind = Signable::parse(&bytes).action();
        assert_eq!(kind, Action::SignProposalPreSharedKey);
    }
    let other_type = [&[2, 0, 4, 3][..], &opaque(b"id"), &nonce].concat();
    assert!(why(&framed(1, MEMBER, &other_type, &context(b'g', 7))).is_some());
}

/// A LeafNodeTBS of source key_package with these credential bytes.
fn leaf_with(credential: &[u8]) -> Vec<u8> {
    let content = [
        &opaque(&[1; 32])[..],
        &opaque(&[2; 32]),
        credential,
        &[2, 0, 1, 2, 0, 1, 0, 0, 2, 0, 2],
        &[1],
        &1_u64.to_be_bytes(),
        &2_u64.to_be_bytes(),
        &[0],
    ]
    .concat();
    sign_content(b"MLS 1.0 LeafNodeTBS", &content).unwrap()
}

#[test]
fn an_x509_credential_is_read_to_its_last_certificate() {
    let chain = [opaque(b"leaf"), opaque(b"issuer")].concat();
    let credential = [&[0, 2][..], &opaque(&chain)].concat();
    let pinned = mlskeyd_protocol::v1::Credential::X509(vec![
        b"leaf".as_slice().into(),
        b"issuer".as_slice().into(),
    ]);
    let bytes = leaf_with(&credential);
    let Signable::LeafNode(leaf) = Signable::parse(&bytes) else {
        panic!("{:?}", Signable::parse(&bytes))
    };
    let read = &leaf.payload.credential;
    assert_eq!(credential_bytes(&pinned).as_deref(), Some(read.raw));
    let CredentialBody::X509 { certificates } = &read.body else {
        panic!("{read:?}")
    };
    assert_eq!(certificates[..], [&b"leaf"[..], b"issuer"]);
    // An empty chain, one cut in a certificate, and another type.
    for credential in [&[0, 2, 0][..], &[0, 2, 2, 5, b'x'], &[0, 3, 0]] {
        assert!(why(&leaf_with(credential)).is_some(), "{credential:?}");
    }
}

#[test]
fn the_number_of_proposals_is_bounded() {
    let commit = |count| {
        let references = opaque(&[2, 0].repeat(count));
        framed(
            1,
            MEMBER,
            &[&[3][..], &references, &[0]].concat(),
            &context(b'g', 7),
        )
    };
    assert_eq!(why(&commit(16_384)), None);
    assert!(matches!(
        why(&commit(16_385)),
        Some(ParseError::TooMany { .. })
    ));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), label in 0_usize..7) {
        let labels: [&[u8]; 7] = [
            FRAMED_CONTENT,
            b"MLS 1.0 LeafNodeTBS",
            b"MLS 1.0 KeyPackageTBS",
            b"MLS 1.0 GroupInfoTBS",
            b"MLS 1.0 Welcome",
            b"MLS 1.0 UpdatePathNode",
            b"other",
        ];
        let labelled = sign_content(labels[label], &bytes).unwrap();
        for input in [&bytes, &labelled] {
            let signable = Signable::parse(input);
            signable.actions();
            signable.own_leaf();
            let _ = Openable::parse(input).check_plaintext(1, &bytes);
        }
    }
}
