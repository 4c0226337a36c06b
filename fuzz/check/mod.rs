//! What must hold whatever bytes an app wants signed or opened. The fuzz target `parse` feeds it what libFuzzer makes
//! up; `tests/tests/fuzz_replay.rs` includes this file and feeds it the corpus.

mod bind;
mod encode;

use mlskeyd::mls::{
    AppContent, CredentialBody, KeyPackage, LeafNode, LeafNodePayload, LeafNodeSource, LeafNodeTbs,
    Openable, OwnLeaf, RequiredCapabilities, Sender, Signable, TreePosition, WireFormat,
    credential_bytes, kem_of_cipher_suite, scheme_of_cipher_suite,
};
use mlskeyd::mls::{Body, FramedContent, proposal_reference_content};
use mlskeyd_policies::Action;
use mlskeyd_protocol::v1;

/// The labels that an input can name by its first byte, so that it need not keep the length of all that follows in
/// step with each change.
pub const LABELS: [&[u8]; 9] = [
    b"MLS 1.0 FramedContentTBS",
    b"MLS 1.0 LeafNodeTBS",
    b"MLS 1.0 KeyPackageTBS",
    b"MLS 1.0 GroupInfoTBS",
    b"MLS 1.0 Welcome",
    b"MLS 1.0 UpdatePathNode",
    b"MLS 1.0 other",
    b"MLS 1.0 TargetedMessageTBS",
    b"mlskeyd 1.0 login",
];
/// Which of them are signed.
const SIGNED_LABELS: [usize; 5] = [0, 1, 2, 3, 7];

/// Checks all that is asked of the parser, with this input as it is and as the content under a label.
///
/// # Panics
/// If something does not hold: that is what the fuzzer looks for.
pub fn check(input: &[u8]) {
    check_signable(input);
    check_openable(input);
    check_plaintext(input);
    check_required_capabilities(input);
    if let Some((label, content)) = input.split_first()
        && let Some(label) = LABELS.get(usize::from(*label))
    {
        let labelled = encode::labelled(label, content);
        check_signable(&labelled);
        check_openable(&labelled);
    }
}

fn check_required_capabilities(data: &[u8]) {
    if let Ok(required) = RequiredCapabilities::parse(data) {
        let lists = [
            required.extensions,
            required.proposals,
            required.credentials,
        ];
        assert_eq!(encode::numbers(&lists), data);
    }
}

fn is_unknown(bytes: &[u8]) -> bool {
    matches!(Signable::parse(bytes), Signable::Unknown(_))
}

fn check_signable(bytes: &[u8]) {
    let signable = Signable::parse(bytes);
    assert_eq!(
        signable,
        Signable::parse(bytes),
        "it is read the same twice"
    );
    let actions = signable.actions();
    assert_eq!(actions.first(), Some(&signable.action()));
    assert!((1..actions.len()).all(|i| !actions[..i].contains(&actions[i])));
    bind::check(&signable, bytes);
    if let Signable::Unknown(unknown) = &signable {
        assert_eq!(actions, [Action::SignUnknown]);
        assert!(unknown.label.is_none_or(|label| label.len() <= 255));
        assert!(!unknown.why.to_string().is_empty());
        assert!(signable.own_leaf().is_none() && signable.cipher_suite().is_none());
        return;
    }
    assert!(!actions.contains(&Action::SignUnknown));
    if let Signable::App(app) = &signable {
        return app_content(app, bytes);
    }
    only_whole(bytes, is_unknown);
    let (label, content) = encode::split(bytes).expect("a known structure has a label");
    assert!(SIGNED_LABELS.iter().any(|of| LABELS[*of] == label));
    encode::signable(&signable).assert_is(content);
    if let Some(suite) = signable.cipher_suite() {
        let known = [1, 2, 3, 7].contains(&suite);
        assert_eq!(scheme_of_cipher_suite(suite).is_some(), known);
        assert_eq!(kem_of_cipher_suite(suite).is_some(), known);
    }
    match &signable {
        Signable::LeafNode(tbs) => leaf_to_sign(tbs),
        Signable::FramedContent(message) => {
            framed_content(message);
            raw_content_is_whole(message, content);
        }
        _ => {}
    }
    if let Some(own_leaf) = signable.own_leaf() {
        own_leaf_is_whole(own_leaf);
    }
}

/// What is no MLS structure is labelled as none, and its content is whatever it is.
fn app_content(app: &AppContent<'_>, bytes: &[u8]) {
    assert!((1..=64).contains(&app.label.len()));
    assert!(app.label.bytes().all(|b| (0x20..0x7f).contains(&b)));
    let label = [b"mlskeyd 1.0 ", app.label.as_bytes()].concat();
    assert_eq!(encode::labelled(&label, app.content.0), bytes);
    let longer = [bytes, &[0]].concat();
    for other in [&bytes[..bytes.len() - 1], &longer, &bytes.repeat(2)] {
        assert!(is_unknown(other));
    }
}

/// Anything more, or less, or twice, is something else: of the bytes, and of the content within a sound envelope.
fn only_whole(bytes: &[u8], is_unknown: impl Fn(&[u8]) -> bool) {
    let (label, content) = encode::split(bytes).expect("it has a label");
    assert_eq!(encode::labelled(label, content), bytes);
    let relabelled = |content: &[u8]| encode::labelled(label, content);
    for other in [
        bytes[..bytes.len() - 1].to_vec(),
        [bytes, &[0]].concat(),
        bytes.repeat(2),
        relabelled(&content[..content.len() - 1]),
        relabelled(&[content, &[0]].concat()),
        relabelled(&content.repeat(2)),
    ] {
        assert!(is_unknown(&other), "{other:02x?} is {bytes:02x?}");
    }
}

fn leaf_to_sign(tbs: &LeafNodeTbs<'_>) {
    leaf_payload(&tbs.payload);
    let of_key_package = matches!(tbs.payload.source, LeafNodeSource::KeyPackage(_));
    assert_eq!(tbs.position.is_none(), of_key_package);
}

fn leaf_payload(leaf: &LeafNodePayload<'_>) {
    let pinned = match &leaf.credential.body {
        CredentialBody::Basic { identity } => v1::Credential::Basic((*identity).into()),
        CredentialBody::X509 { certificates } => {
            assert!(!certificates.is_empty());
            v1::Credential::X509(certificates.iter().map(|&c| c.into()).collect())
        }
    };
    let bytes = credential_bytes(&pinned);
    assert_eq!(bytes.as_deref(), Some(leaf.credential.raw));
    if let LeafNodeSource::KeyPackage(lifetime) = leaf.source {
        assert!(lifetime.not_before <= lifetime.not_after);
    }
}

/// The senders, and what each may send, as RFC 9420 sections 6 and 12 have them.
fn framed_content(content: &FramedContent<'_>) {
    if let Some(context) = content.group_context() {
        assert_eq!(context.group_id, content.group_id);
        assert_eq!(context.epoch, content.epoch);
    }
    let member = matches!(content.sender, Sender::Member { .. });
    assert!(member || content.wire_format == WireFormat::Public);
    match &content.body {
        Body::Application(data) => {
            assert!(member && content.wire_format == WireFormat::Private);
            let shown = format!("{data:?}");
            assert_eq!(shown, format!("ApplicationData({} bytes)", data.0.len()));
            let shown = format!("{:?}", content.raw);
            assert_eq!(shown, format!("RawContent({} bytes)", content.raw.0.len()));
        }
        Body::Proposal(_) => {
            assert!(!matches!(content.sender, Sender::NewMemberCommit { .. }));
            assert_eq!(content.proposals().count(), 1);
        }
        Body::Commit(commit) => {
            let inline = commit.inline_proposals().count();
            assert_eq!(content.proposals().count(), inline);
            assert_eq!(commit.references() + inline, commit.proposals.len());
            let newcomer = matches!(content.sender, Sender::NewMemberCommit { .. });
            assert!(newcomer || member);
            assert!(!newcomer || commit.path.is_some());
            let inits = content.proposals().map(|p| p.action());
            let inits = inits.filter(|a| *a == Action::SignProposalExternalInit);
            assert_eq!(inits.count(), usize::from(newcomer));
        }
    }
    content.added().for_each(key_package_is_whole);
}

/// What a proposal's reference is the hash of, is what was signed, up to the GroupContext (RFC 9420 section 5.2).
fn raw_content_is_whole(message: &FramedContent<'_>, content: &[u8]) {
    let context = message.group_context().map(encode::context);
    let whole = [&[0, 1], message.raw.0, &context.unwrap_or_default()].concat();
    assert_eq!(whole, content);
    let reference = proposal_reference_content(message.raw, b"signature").expect("it fits");
    let (label, input) = encode::split(&reference).expect("it has a label");
    assert_eq!(label, b"MLS 1.0 Proposal Reference");
    assert_eq!(input, [message.raw.0, b"\x09signature"].concat());
}

fn own_leaf_is_whole(own_leaf: OwnLeaf<'_, '_>) {
    let leaf = own_leaf.leaf_node();
    leaf_payload(&leaf.payload);
    let keys: Vec<&[u8]> = own_leaf.hpke_keys().collect();
    assert_eq!(keys[0], leaf.payload.encryption_key);
    let position = |group_id, leaf_index| {
        Some(TreePosition {
            group_id,
            leaf_index,
        })
    };
    let (of_key_package, position) = match own_leaf {
        OwnLeaf::KeyPackage(tbs) => {
            let listed = tbs.extensions.iter().any(|e| e.extension_type.0 == 0x000a);
            assert_eq!(tbs.last_resort(), listed);
            (true, None)
        }
        OwnLeaf::ExternalAdd { key_package, .. } => {
            key_package_is_whole(key_package);
            (true, None)
        }
        OwnLeaf::Update {
            group_id,
            leaf_index,
            ..
        }
        | OwnLeaf::Commit {
            group_id,
            leaf_index,
            ..
        } => (false, position(group_id, leaf_index)),
        OwnLeaf::ExternalCommit { group_id, .. } => (false, position(group_id, 7)),
    };
    assert_eq!(keys.len(), if of_key_package { 2 } else { 1 });
    leaf_is_whole(leaf, position);
}

/// What its signature must sign is the leaf that was read.
fn leaf_is_whole(leaf: &LeafNode<'_>, position: Option<TreePosition<'_>>) {
    let of_key_package = matches!(leaf.payload.source, LeafNodeSource::KeyPackage(_));
    assert_eq!(position.is_none(), of_key_package);
    assert_eq!(leaf.signed_content(None).is_some(), of_key_package);
    let content = leaf.signed_content(position).expect("it fits");
    let Signable::LeafNode(tbs) = Signable::parse(&content) else {
        panic!("no leaf: {content:02x?}");
    };
    assert_eq!(tbs.payload, leaf.payload);
    assert_eq!(tbs.position, position);
}

fn key_package_is_whole(key_package: &KeyPackage<'_>) {
    let content = key_package.signed_content().expect("it fits");
    let Signable::KeyPackage(tbs) = Signable::parse(&content) else {
        panic!("no KeyPackage: {content:02x?}");
    };
    assert_eq!(*tbs, key_package.tbs);
    leaf_is_whole(&tbs.leaf_node, None);
}

fn check_openable(info: &[u8]) {
    let open = Openable::parse(info);
    assert_eq!(open, Openable::parse(info), "it is read the same twice");
    let is_unknown = |bytes: &[u8]| Openable::parse(bytes).action() == Action::OpenUnknown;
    match &open {
        Openable::Unknown(unknown) => {
            assert_eq!(open.action(), Action::OpenUnknown);
            assert!(unknown.label.is_none_or(|label| label.len() <= 255));
            assert_eq!(open.check_plaintext(1, &[7; 32]), Err(unknown.why));
        }
        // Its content is sealed: any bytes are one.
        Openable::Welcome {
            encrypted_group_info,
        } => assert_eq!(encode::labelled(LABELS[4], encrypted_group_info), info),
        Openable::PathSecret { group_context } => {
            only_whole(info, is_unknown);
            let content = encode::context(group_context);
            assert_eq!(encode::labelled(LABELS[5], &content), info);
        }
    }
}

/// The input as what such an open yields.
fn check_plaintext(plaintext: &[u8]) {
    let welcome = encode::labelled(LABELS[4], b"sealed");
    let path_secret = |suite| {
        let context = [0, 1, 0, suite, 1, b'g', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        encode::labelled(LABELS[5], &context)
    };
    for suite in [1, 4, 7, 8] {
        for info in [&welcome, &path_secret(suite)] {
            let open = Openable::parse(info);
            let suite = suite.into();
            if open.check_plaintext(suite, plaintext).is_err() {
                continue;
            }
            assert_ne!(suite, 8, "there is no such suite");
            let longer = [plaintext, &[0]].concat();
            assert!(open.check_plaintext(suite, &longer).is_err());
            let shorter = &plaintext[..plaintext.len() - 1];
            assert!(open.check_plaintext(suite, shorter).is_err());
            let other = if suite == 7 { 1 } else { 7 };
            assert!(open.check_plaintext(other, plaintext).is_err());
        }
    }
}
