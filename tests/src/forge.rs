//! MLS structures by hand (RFC 9420), true ones and forged ones.

use std::sync::LazyLock;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::suite::Suite;

/// `opaque value<V>`: a length of one, two or four bytes, then the value.
pub fn opaque(value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).expect("no structure is that long");
    let prefix = match length {
        0..0x40 => vec![u8::try_from(length).expect("below 0x40")],
        0x40..0x4000 => (0x4000 | u16::try_from(length).expect("below 0x4000"))
            .to_be_bytes()
            .into(),
        _ => (0x8000_0000 | length).to_be_bytes().into(),
    };
    [prefix, value.to_vec()].concat()
}

/// SignContent, and EncryptContext, with an MLS label.
pub fn labelled(label: &str, content: &[u8]) -> Vec<u8> {
    let label = format!("MLS 1.0 {label}");
    [opaque(label.as_bytes()), opaque(content)].concat()
}

/// A basic credential.
pub fn credential(name: &str) -> Vec<u8> {
    [vec![0, 1], opaque(name.as_bytes())].concat()
}

/// How a leaf came into its tree.
#[derive(Clone, Copy)]
pub enum Source {
    /// By a KeyPackage, from the first second to the last.
    KeyPackage(u64, u64),
    /// By a KeyPackage, for a month from now.
    ForAMonth,
    /// By an Update proposal.
    Update,
    /// By a commit.
    Commit,
}

/// For a month from now: longer ones are against the default policies.
pub const ALWAYS: Source = Source::ForAMonth;

/// When the month ends that [`Source::ForAMonth`] is, in this process.
static IN_A_MONTH: LazyLock<u64> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs() + 30 * 24 * 60 * 60
});

/// A leaf without its signature.
#[derive(Clone)]
pub struct Leaf {
    pub encryption_key: Vec<u8>,
    pub signature_key: Vec<u8>,
    pub credential: Vec<u8>,
    pub source: Source,
    /// A list of [`extension`]s.
    pub extensions: Vec<u8>,
}

impl Leaf {
    fn payload(&self) -> Vec<u8> {
        let lasts = |first: u64, last: u64| {
            let [first, last] = [first, last].map(u64::to_be_bytes);
            [&[1], &first[..], &last].concat()
        };
        let source = match self.source {
            Source::KeyPackage(first, last) => lasts(first, last),
            Source::ForAMonth => lasts(0, *IN_A_MONTH),
            Source::Update => vec![2],
            Source::Commit => vec![3, 0],
        };
        [
            opaque(&self.encryption_key),
            opaque(&self.signature_key),
            self.credential.clone(),
            vec![0; 5], // capabilities: five empty lists
            source,
            opaque(&self.extensions),
        ]
        .concat()
    }

    /// What its signature is over; at this place in this group, unless it is
    /// in a KeyPackage.
    pub fn tbs(&self, group: &str, index: u32) -> Vec<u8> {
        let place = match self.source {
            Source::KeyPackage(..) | Source::ForAMonth => Vec::new(),
            _ => [opaque(group.as_bytes()), index.to_be_bytes().into()].concat(),
        };
        labelled("LeafNodeTBS", &[self.payload(), place].concat())
    }

    /// With its signature.
    pub fn signed(&self, signature: &[u8]) -> Vec<u8> {
        [self.payload(), opaque(signature)].concat()
    }
}

pub fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [number.to_be_bytes().to_vec(), opaque(data)].concat()
}

/// A KeyPackage without its signature.
pub fn key_package(
    suite: Suite,
    init_key: &[u8],
    signed_leaf: &[u8],
    last_resort: bool,
) -> Vec<u8> {
    let extensions = if last_resort {
        extension(0x000a, &[])
    } else {
        Vec::new()
    };
    key_package_with(suite, init_key, signed_leaf, &extensions)
}

/// The same, with a list of [`extension`]s.
pub fn key_package_with(
    suite: Suite,
    init_key: &[u8],
    signed_leaf: &[u8],
    extensions: &[u8],
) -> Vec<u8> {
    [
        &[0, 1],
        &suite.number.to_be_bytes()[..],
        &opaque(init_key),
        signed_leaf,
        &opaque(extensions),
    ]
    .concat()
}

/// What a KeyPackage's signature is over.
pub fn key_package_tbs(key_package: &[u8]) -> Vec<u8> {
    labelled("KeyPackageTBS", key_package)
}

pub fn group_context(suite: Suite, group: &str, epoch: u64) -> Vec<u8> {
    group_context_with(suite, group, epoch, &[])
}

/// The same, with a list of [`extension`]s.
pub fn group_context_with(suite: Suite, group: &str, epoch: u64, extensions: &[u8]) -> Vec<u8> {
    [
        &[0, 1],
        &suite.number.to_be_bytes()[..],
        &opaque(group.as_bytes()),
        &epoch.to_be_bytes(),
        &[0, 0], // hashes
        &opaque(extensions),
    ]
    .concat()
}

/// `required_capabilities`, an extension: types of extensions, proposals and credentials.
pub fn required_capabilities(required: [&[u16]; 3]) -> Vec<u8> {
    let list = |types: &[u16]| {
        opaque(
            &types
                .iter()
                .flat_map(|it| it.to_be_bytes())
                .collect::<Vec<_>>(),
        )
    };
    extension(0x0003, &required.map(list).concat())
}

/// What a GroupInfo's signature is over, with a list of [`extension`]s.
pub fn group_info_tbs(context: &[u8], extensions: &[u8], signer: u32) -> Vec<u8> {
    let tag = opaque(&[5; 32]);
    let signer = signer.to_be_bytes();
    let content = [context, &opaque(extensions), &tag, &signer].concat();
    labelled("GroupInfoTBS", &content)
}

/// Who sends.
#[derive(Clone, Copy)]
pub enum Sender {
    Member(u32),
    External(u32),
    NewMemberProposal,
    NewMemberCommit,
}

/// FramedContentTBS of a public message, whose GroupContext tells another group
/// if `context` says so.
pub fn message_in(
    suite: Suite,
    context: &str,
    group: &str,
    epoch: u64,
    sender: Sender,
    body: &[u8],
) -> Vec<u8> {
    let context = match sender {
        Sender::Member(_) | Sender::NewMemberCommit => group_context(suite, context, epoch),
        Sender::External(_) | Sender::NewMemberProposal => Vec::new(),
    };
    message_under(&context, group, epoch, sender, body)
}

/// The same, whose GroupContext is this.
pub fn message_under(
    context: &[u8],
    group: &str,
    epoch: u64,
    sender: Sender,
    body: &[u8],
) -> Vec<u8> {
    let sender = match sender {
        Sender::Member(index) => [&[1][..], &index.to_be_bytes()].concat(),
        Sender::External(index) => [&[2][..], &index.to_be_bytes()].concat(),
        Sender::NewMemberProposal => vec![3],
        Sender::NewMemberCommit => vec![4],
    };
    // Application data travels as a private message.
    let wire_format = if body.first() == Some(&1) { 2 } else { 1 };
    let head = [0, 1, 0, wire_format];
    let group = opaque(group.as_bytes());
    let content = [
        &head,
        &*group,
        &epoch.to_be_bytes(),
        &sender,
        &[0],
        body,
        context,
    ]
    .concat();
    labelled("FramedContentTBS", &content)
}

/// The same, consistent.
pub fn message(suite: Suite, group: &str, epoch: u64, sender: Sender, body: &[u8]) -> Vec<u8> {
    message_in(suite, group, group, epoch, sender, body)
}

/// A text.
pub fn application(text: &str) -> Vec<u8> {
    [vec![1], opaque(text.as_bytes())].concat()
}

/// An Update proposal.
pub fn update(signed_leaf: &[u8]) -> Vec<u8> {
    [&[2, 0, 2], signed_leaf].concat()
}

/// An Add proposal.
pub fn add(key_package: &[u8], signature: &[u8]) -> Vec<u8> {
    [&[2, 0, 1], key_package, &opaque(signature)].concat()
}

/// A commit of nothing but a path with this leaf.
pub fn commit(signed_leaf: &[u8]) -> Vec<u8> {
    [&[3, 0, 1], signed_leaf, &[0]].concat()
}

/// An external commit with this leaf.
pub fn external_commit(kem_output: &[u8], signed_leaf: &[u8]) -> Vec<u8> {
    let init = [vec![1, 0, 6], opaque(kem_output)].concat();
    [&[3], &*opaque(&init), &[1], signed_leaf, &[0]].concat()
}

/// A Remove proposal, as it stands within a commit.
pub fn remove(leaf_index: u32) -> Vec<u8> {
    [&[0, 3], &leaf_index.to_be_bytes()[..]].concat()
}

/// A PreSharedKey proposal, as it stands within a commit.
pub fn pre_shared_key(id: &[u8]) -> Vec<u8> {
    let nonce = opaque(&[6; 32]);
    [&[0, 4, 1], &*opaque(id), &nonce].concat()
}

/// A proposal of a type for private use, as it stands within a commit.
pub fn private_use(proposal_type: u16, content: &[u8]) -> Vec<u8> {
    [&proposal_type.to_be_bytes(), &*opaque(content)].concat()
}

/// A message with this proposal.
pub fn proposal(proposal: &[u8]) -> Vec<u8> {
    [&[2], proposal].concat()
}

/// A commit of these proposals and references, with a path with this leaf.
pub fn commit_of(proposals: &[&[u8]], references: &[&[u8]], signed_leaf: &[u8]) -> Vec<u8> {
    let spelt_out = proposals.iter().map(|it| [&[1], *it].concat());
    let named = references.iter().map(|it| [&[2], &*opaque(it)].concat());
    let all: Vec<u8> = spelt_out.chain(named).flatten().collect();
    [&[3], &*opaque(&all), &[1], signed_leaf, &[0]].concat()
}

/// The ProposalRef (RFC 9420, 5.2) of what [`message`] made for a member, once it is signed.
pub fn proposal_reference(content: &[u8], context: &[u8], signature: &[u8]) -> Vec<u8> {
    let label = opaque(b"MLS 1.0 FramedContentTBS").len();
    let tbs = &content[label..];
    let length_of_length = 1 << (tbs[0] >> 6);
    // Neither the version nor the GroupContext is part of what is hashed.
    let version = length_of_length + 2;
    let authenticated = [&tbs[version..tbs.len() - context.len()], &opaque(signature)].concat();
    Sha256::digest(labelled("Proposal Reference", &authenticated)).to_vec()
}

/// TargetedMessageTBS, with a ciphertext that nobody has.
pub fn targeted_message(group: &str, epoch: u64, sender: u32, recipient: u32) -> Vec<u8> {
    let content = [
        &[0, 1, 0, 6],
        &*opaque(group.as_bytes()),
        &epoch.to_be_bytes(),
        &recipient.to_be_bytes(),
        &[0],
        &sender.to_be_bytes(),
        &opaque(b"encapsulated"),
        &opaque(&[7; 32]),
    ]
    .concat();
    labelled("TargetedMessageTBS", &content)
}

/// A credential of certificates.
pub fn certificates<'c>(chain: impl Iterator<Item = &'c [u8]>) -> Vec<u8> {
    let chain: Vec<u8> = chain.flat_map(opaque).collect();
    [vec![0, 2], opaque(&chain)].concat()
}
