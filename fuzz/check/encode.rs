//! Writes again what was read: so nothing that is signed goes unread, and nothing is read in two ways.

use mlskeyd::mls::{
    Body, Capabilities, Commit, Credential, CredentialBody, Extensions, FramedContent,
    GroupContext, KeyPackage, KeyPackageTbs, LeafNode, LeafNodePayload, LeafNodeSource,
    PreSharedKeyId, Proposal, ProposalOrRef, PskOrigin, Sender, Signable, UpdatePathNode,
    WireFormat,
};

/// Structures as they are encoded, but for the nodes of a path, of which the parser keeps no ciphertexts.
#[derive(Default)]
pub(super) struct Encoded<'s, 'a> {
    before: Vec<u8>,
    path: Option<(&'s [UpdatePathNode<'a>], Vec<u8>)>,
}

impl Encoded<'_, '_> {
    /// What was encoded is this.
    pub(super) fn assert_is(&self, bytes: &[u8]) {
        let Some((nodes, after)) = &self.path else {
            assert_eq!(self.before, bytes);
            return;
        };
        let rest = bytes
            .strip_prefix(&self.before[..])
            .expect("it is the same");
        let (mut list, rest) = opaque(rest).expect("nodes");
        assert_eq!(after, rest);
        for node in *nodes {
            let (key, rest) = opaque(list).expect("a node's key");
            assert_eq!(key, node.encryption_key);
            let (mut ciphertexts, rest) = opaque(rest).expect("its ciphertexts");
            for _ in 0..node.recipients * 2 {
                ciphertexts = opaque(ciphertexts).expect("a part of one").1;
            }
            assert!(ciphertexts.is_empty());
            list = rest;
        }
        assert!(list.is_empty());
    }

    fn out(&mut self) -> &mut Vec<u8> {
        self.path
            .as_mut()
            .map_or(&mut self.before, |(_, after)| after)
    }
}

/// `opaque<V>` and what follows (RFC 9420 section 2.1.2).
fn opaque(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let prefix = 1 << (bytes.first()? >> 6);
    let (length, rest) = bytes.split_at_checked(prefix)?;
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(length & ((1 << (8 * prefix - 2)) - 1))
}

/// `{ label<V>, content<V> }`, taken apart.
pub(super) fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (label, rest) = opaque(bytes)?;
    let (content, rest) = opaque(rest)?;
    rest.is_empty().then_some((label, content))
}

/// The same, put together.
pub(super) fn labelled(label: &[u8], content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, label);
    write(&mut out, content);
    out
}

fn write(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("inputs are short");
    match length {
        0..64 => out.push(length as u8),
        64..16_384 => out.extend((length as u16 | 0x4000).to_be_bytes()),
        _ => out.extend((length | 0x8000_0000).to_be_bytes()),
    }
    out.extend(bytes);
}

/// A vector of what `inner` writes.
fn vector(out: &mut Vec<u8>, inner: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = Vec::new();
    inner(&mut bytes);
    write(out, &bytes);
}

/// Vectors of numbers, one after the other.
pub(super) fn numbers(lists: &[Vec<u16>]) -> Vec<u8> {
    let mut out = Vec::new();
    for list in lists {
        vector(&mut out, |out| {
            list.iter().for_each(|one| number(out, *one))
        });
    }
    out
}

fn number(out: &mut Vec<u8>, number: u16) {
    out.extend(number.to_be_bytes());
}

/// The content under its label.
pub(super) fn signable<'s, 'a>(signable: &'s Signable<'a>) -> Encoded<'s, 'a> {
    let mut encoded = Encoded::default();
    let out = &mut encoded.before;
    match signable {
        Signable::FramedContent(content) => framed_content(&mut encoded, content),
        Signable::LeafNode(tbs) => {
            leaf_payload(out, &tbs.payload);
            if let Some(position) = tbs.position {
                write(out, position.group_id);
                out.extend(position.leaf_index.to_be_bytes());
            }
        }
        Signable::KeyPackage(tbs) => key_package_tbs(out, tbs),
        Signable::GroupInfo(tbs) => {
            out.extend(context(&tbs.group_context));
            extensions(out, &tbs.extensions);
            write(out, tbs.confirmation_tag);
            out.extend(tbs.signer.to_be_bytes());
        }
        Signable::TargetedMessage(message) => {
            number(out, 1);
            number(out, 6);
            write(out, message.group_id);
            out.extend(message.epoch.to_be_bytes());
            out.extend(message.recipient_leaf_index.to_be_bytes());
            write(out, message.authenticated_data);
            out.extend(message.sender_leaf_index.to_be_bytes());
            write(out, message.kem_output);
            write(out, message.ciphertext_hash);
        }
        Signable::App(_) | Signable::Unknown(_) => {}
    }
    encoded
}

fn framed_content<'s, 'a>(encoded: &mut Encoded<'s, 'a>, content: &'s FramedContent<'a>) {
    let out = &mut encoded.before;
    number(out, 1);
    number(
        out,
        match content.wire_format {
            WireFormat::Public => 1,
            WireFormat::Private => 2,
        },
    );
    write(out, content.group_id);
    out.extend(content.epoch.to_be_bytes());
    match &content.sender {
        Sender::Member { leaf_index, .. } => {
            out.push(1);
            out.extend(leaf_index.to_be_bytes());
        }
        Sender::External { sender_index } => {
            out.push(2);
            out.extend(sender_index.to_be_bytes());
        }
        Sender::NewMemberProposal => out.push(3),
        Sender::NewMemberCommit { .. } => out.push(4),
    }
    write(out, content.authenticated_data);
    match &content.body {
        Body::Application(data) => {
            out.push(1);
            write(out, data.0);
        }
        Body::Proposal(inner) => {
            out.push(2);
            proposal(out, inner);
        }
        Body::Commit(inner) => {
            out.push(3);
            commit(encoded, inner);
        }
    }
    if let Some(inner) = content.group_context() {
        encoded.out().extend(context(inner));
    }
}

fn commit<'s, 'a>(encoded: &mut Encoded<'s, 'a>, commit: &'s Commit<'a>) {
    let out = &mut encoded.before;
    vector(out, |out| {
        for inner in &commit.proposals {
            match inner {
                ProposalOrRef::Proposal(inner) => {
                    out.push(1);
                    proposal(out, inner);
                }
                ProposalOrRef::Reference(hash) => {
                    out.push(2);
                    write(out, hash);
                }
            }
        }
    });
    out.push(commit.path.is_some().into());
    if let Some(path) = &commit.path {
        leaf_node(out, &path.leaf_node);
        encoded.path = Some((&path.nodes, Vec::new()));
    }
}

fn proposal(out: &mut Vec<u8>, proposal: &Proposal<'_>) {
    match proposal {
        Proposal::Add(inner) => {
            number(out, 1);
            key_package(out, inner);
        }
        Proposal::Update(inner) => {
            number(out, 2);
            leaf_node(out, inner);
        }
        Proposal::Remove { removed } => {
            number(out, 3);
            out.extend(removed.to_be_bytes());
        }
        Proposal::PreSharedKey(inner) => {
            number(out, 4);
            psk(out, inner);
        }
        Proposal::ReInit {
            group_id,
            cipher_suite,
            extensions: inner,
        } => {
            number(out, 5);
            write(out, group_id);
            number(out, 1);
            number(out, *cipher_suite);
            extensions(out, inner);
        }
        Proposal::ExternalInit { kem_output } => {
            number(out, 6);
            write(out, kem_output);
        }
        Proposal::GroupContextExtensions(inner) => {
            number(out, 7);
            extensions(out, inner);
        }
        Proposal::SelfRemove => number(out, 0x000a),
        Proposal::PrivateUse {
            proposal_type,
            content,
        } => {
            assert!(*proposal_type >= 0xf000);
            number(out, *proposal_type);
            write(out, content);
        }
    }
}

fn psk(out: &mut Vec<u8>, psk: &PreSharedKeyId<'_>) {
    match psk.origin {
        PskOrigin::External { id } => {
            out.push(1);
            write(out, id);
        }
        PskOrigin::Resumption {
            usage,
            group_id,
            epoch,
        } => {
            out.extend([2, usage]);
            write(out, group_id);
            out.extend(epoch.to_be_bytes());
        }
    }
    write(out, psk.nonce);
}

fn key_package(out: &mut Vec<u8>, key_package: &KeyPackage<'_>) {
    key_package_tbs(out, &key_package.tbs);
    write(out, key_package.signature);
}

fn key_package_tbs(out: &mut Vec<u8>, tbs: &KeyPackageTbs<'_>) {
    number(out, 1);
    number(out, tbs.cipher_suite);
    write(out, tbs.init_key);
    leaf_node(out, &tbs.leaf_node);
    assert_eq!(
        tbs.leaf_node.payload.source,
        LeafNodeSource::KeyPackage(tbs.lifetime)
    );
    extensions(out, &tbs.extensions);
}

fn leaf_node(out: &mut Vec<u8>, leaf: &LeafNode<'_>) {
    leaf_payload(out, &leaf.payload);
    write(out, leaf.signature);
}

fn leaf_payload(out: &mut Vec<u8>, leaf: &LeafNodePayload<'_>) {
    write(out, leaf.encryption_key);
    write(out, leaf.signature_key);
    credential(out, &leaf.credential);
    capabilities(out, &leaf.capabilities);
    match leaf.source {
        LeafNodeSource::KeyPackage(lifetime) => {
            out.push(1);
            out.extend(lifetime.not_before.to_be_bytes());
            out.extend(lifetime.not_after.to_be_bytes());
        }
        LeafNodeSource::Update => out.push(2),
        LeafNodeSource::Commit { parent_hash } => {
            out.push(3);
            write(out, parent_hash);
        }
    }
    extensions(out, &leaf.extensions);
}

fn credential(out: &mut Vec<u8>, credential: &Credential<'_>) {
    match &credential.body {
        CredentialBody::Basic { identity } => {
            number(out, 1);
            write(out, identity);
        }
        CredentialBody::X509 { certificates } => {
            number(out, 2);
            vector(out, |out| certificates.iter().for_each(|c| write(out, c)));
        }
    }
}

fn capabilities(out: &mut Vec<u8>, capabilities: &Capabilities) {
    for list in [
        &capabilities.versions,
        &capabilities.cipher_suites,
        &capabilities.extensions,
        &capabilities.proposals,
        &capabilities.credentials,
    ] {
        vector(out, |out| list.iter().for_each(|value| number(out, *value)));
    }
}

fn extensions(out: &mut Vec<u8>, extensions: &Extensions<'_>) {
    vector(out, |out| {
        for extension in extensions.iter() {
            number(out, extension.extension_type.0);
            write(out, extension.data);
            let found = extensions.extension(extension.extension_type);
            assert_eq!(found, Some(extension.data), "there is one of a type");
        }
    });
}

/// A GroupContext.
pub(super) fn context(context: &GroupContext<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, 1);
    number(&mut out, context.cipher_suite);
    write(&mut out, context.group_id);
    out.extend(context.epoch.to_be_bytes());
    write(&mut out, context.tree_hash);
    write(&mut out, context.confirmed_transcript_hash);
    extensions(&mut out, &context.extensions);
    out
}
