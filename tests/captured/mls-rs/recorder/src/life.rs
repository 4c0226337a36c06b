//! The life of a group, told by those who take part.

use mls_rs::client_builder::MlsConfig;
use mls_rs::extension::built_in::ExternalSendersExt;
use mls_rs::extension::recommended::LastResortKeyPackageExt;
use mls_rs::external_client::ExternalClient;
use mls_rs::group::proposal::CustomProposal;
use mls_rs::group::{CommitEffect, ExportedTree, ReceivedMessage};
use mls_rs::psk::ExternalPskId;
use mls_rs::{CipherSuite, Client, ExtensionList, Group, MlsMessage};
use mls_rs_core::protocol_version::ProtocolVersion;

use crate::people::{self, CUSTOM, Style, Trusting};
use crate::{Keep, Lines};

const MLS10: ProtocolVersion = ProtocolVersion::MLS_10;

fn none() -> ExtensionList {
    ExtensionList::new()
}

fn psk() -> ExternalPskId {
    ExternalPskId::new(b"psk".to_vec())
}

fn key_package<C: MlsConfig>(client: &Client<C>) -> MlsMessage {
    client
        .generate_key_package_message(none(), none(), None)
        .unwrap()
}

/// The tree, for who gets it by another way than in the Welcome.
fn tree<C: MlsConfig>(group: &Group<C>) -> Option<ExportedTree<'static>> {
    Some(group.export_tree().into_owned())
}

/// Everybody but the sender receives.
fn deliver<C: MlsConfig>(message: &MlsMessage, to: &mut [&mut Group<C>]) {
    for group in to {
        group.process_incoming_message(message.clone()).unwrap();
    }
}

/// The sender of a commit applies it, the others receive it.
fn commit<C: MlsConfig>(message: &MlsMessage, by: &mut Group<C>, to: &mut [&mut Group<C>]) {
    by.apply_pending_commit().unwrap();
    deliver(message, to);
}

/// Lives, and notes what is signed and opened meanwhile.
pub fn live(lines: &mut Lines, suite: CipherSuite, style: Style) {
    let crypto = lines.crypto();
    let person = |name| people::client(&crypto, suite, style, people::basic(&crypto, suite, name));
    let (alice, bob, dave, erin) = (
        person("alice"),
        person("bob"),
        person("dave"),
        person("erin"),
    );
    let carol = people::client(&crypto, suite, style, people::x509(&crypto, suite, "carol"));
    let (server_key, server) = people::basic(&crypto, suite, "server");

    // Alice founds a group that a server may send proposals to, and adds bob and carol.
    let mut extensions = none();
    extensions
        .set_from(ExternalSendersExt::new(vec![server.clone()]))
        .unwrap();
    let mut a = alice
        .create_group(extensions.clone(), none(), None)
        .unwrap();
    let mut last_resort = none();
    last_resort.set_from(LastResortKeyPackageExt).unwrap();
    let carols = carol
        .generate_key_package_message(last_resort, none(), None)
        .unwrap();
    let done = a
        .commit_builder()
        .add_member(key_package(&bob))
        .unwrap()
        .add_member(carols)
        .unwrap()
        .build()
        .unwrap();
    a.apply_pending_commit().unwrap();
    let welcome = &done.welcome_messages()[0];
    let (mut b, _) = bob.join_group(tree(&a), welcome, None).unwrap();
    let (mut c, _) = carol.join_group(tree(&a), welcome, None).unwrap();

    lines.note(Keep::All);

    for (text, authenticated) in [(&b"Good morning"[..], &b""[..]), (b"", b"seen")] {
        let message = b
            .encrypt_application_message(text, authenticated.to_vec())
            .unwrap();
        deliver(&message, &mut [&mut a, &mut c]);
    }

    // Proposals of all kinds, which alice commits by reference.
    let proposed = [
        b.propose_add(key_package(&dave), b"why".to_vec()).unwrap(),
        b.propose_external_psk(psk(), vec![]).unwrap(),
        b.propose_update(vec![]).unwrap(),
    ];
    for message in &proposed {
        deliver(message, &mut [&mut a, &mut c]);
    }
    let message = c
        .propose_group_context_extensions(extensions.clone(), vec![])
        .unwrap();
    deliver(&message, &mut [&mut a, &mut b]);
    let done = a.commit(vec![]).unwrap();
    commit(done.commit_message(), &mut a, &mut [&mut b, &mut c]);
    let (mut d, _) = dave
        .join_group(tree(&a), &done.welcome_messages()[0], None)
        .unwrap();

    // An empty commit, and one with a new signature key, announced by an update and at once.
    let done = c.commit(b"new keys".to_vec()).unwrap();
    commit(done.commit_message(), &mut c, &mut [&mut a, &mut b, &mut d]);
    let (key, identity) = people::basic(&crypto, suite, "dave");
    let done = d
        .commit_builder()
        .set_new_signing_identity(key, identity)
        .build()
        .unwrap();
    commit(done.commit_message(), &mut d, &mut [&mut a, &mut b, &mut c]);
    let (key, identity) = people::basic(&crypto, suite, "bob");
    let message = b
        .propose_update_with_identity(key, identity, vec![])
        .unwrap();
    deliver(&message, &mut [&mut a, &mut c, &mut d]);
    let message = a.propose_resumption_psk(a.current_epoch(), vec![]).unwrap();
    deliver(&message, &mut [&mut b, &mut c, &mut d]);
    let done = d.commit(vec![]).unwrap();
    commit(done.commit_message(), &mut d, &mut [&mut a, &mut b, &mut c]);

    // Spelt out in one commit: pre-shared keys, extensions and a remove, which was proposed before.
    let message = a.propose_remove(3, vec![]).unwrap();
    deliver(&message, &mut [&mut b, &mut c]);
    for group in [&mut a, &mut b, &mut c] {
        group.clear_proposal_cache();
    }
    let epoch = b.current_epoch();
    let done = b
        .commit_builder()
        .remove_member(3)
        .unwrap()
        .add_external_psk(psk())
        .unwrap()
        .add_resumption_psk(epoch)
        .unwrap()
        .set_group_context_ext(extensions.clone())
        .unwrap()
        .authenticated_data(b"out".to_vec())
        .build()
        .unwrap();
    commit(done.commit_message(), &mut b, &mut [&mut a, &mut c]);

    lines.note(Keep::ButGroupInfos);
    if style.short {
        return;
    }

    // Dave asks to come back, the server proposes this and that, and dave comes back uninvited, twice.
    let info = a.group_info_message_allowing_ext_commit(true).unwrap();
    dave.external_add_proposal(&info, None, b"please".to_vec(), none(), none(), None)
        .unwrap();
    a.group_info_message(true).unwrap();
    a.group_info_message(false).unwrap();
    let observer = ExternalClient::builder()
        .crypto_provider(crypto.clone())
        .identity_provider(Trusting)
        .signer(server_key, server)
        .build();
    let mut observed = observer.observe_group(info.clone(), None, None).unwrap();
    observed.propose_add(key_package(&erin), vec![]).unwrap();
    observed.propose_remove(1, vec![]).unwrap();
    observed.propose_external_psk(psk(), vec![]).unwrap();
    observed
        .propose_group_context_extensions(extensions.clone(), vec![])
        .unwrap();
    observed
        .propose_reinit(None, MLS10, suite, extensions.clone(), vec![])
        .unwrap();
    let (_, message) = dave
        .external_commit_builder()
        .unwrap()
        .with_external_psk(psk())
        .build(info)
        .unwrap();
    deliver(&message, &mut [&mut a, &mut b, &mut c]);
    let info = b.group_info_message_allowing_ext_commit(false).unwrap();
    let (mut d, message) = dave
        .external_commit_builder()
        .unwrap()
        .with_tree_data(tree(&b).unwrap())
        .with_removal(3)
        .with_authenticated_data(b"again".to_vec())
        .build(info)
        .unwrap();
    deliver(&message, &mut [&mut a, &mut b, &mut c]);
    lines.note(Keep::All);

    // A proposal of a type for private use, by itself and spelt out in a commit.
    let custom = |data: &[u8]| CustomProposal::new(CUSTOM, data.to_vec());
    let message = a.propose_custom(custom(b"custom"), vec![]).unwrap();
    deliver(&message, &mut [&mut b, &mut c, &mut d]);
    lines.note(Keep::Custom);
    let done = b.commit(vec![]).unwrap();
    commit(done.commit_message(), &mut b, &mut [&mut a, &mut c, &mut d]);
    lines.note(Keep::ButGroupInfos);
    let done = b
        .commit_builder()
        .custom_proposal(custom(b""))
        .build()
        .unwrap();
    commit(done.commit_message(), &mut b, &mut [&mut a, &mut c, &mut d]);
    lines.note(Keep::Custom);

    // Dave leaves. The SelfRemove of mls-rs has a number for private use, 0xf003, and not the draft's 0x000a.
    let message = d.propose_self_remove(vec![]).unwrap();
    deliver(&message, &mut [&mut a, &mut b, &mut c]);
    lines.note(Keep::Custom);
    let done = b.commit(vec![]).unwrap();
    commit(done.commit_message(), &mut b, &mut [&mut a, &mut c]);

    // A branch for two, and the whole group once more.
    let (branch, welcomes) = a
        .branch(b"branch".to_vec(), vec![key_package(&bob)], None)
        .unwrap();
    b.join_subgroup(&welcomes[0], tree(&branch), None).unwrap();
    let message = a
        .propose_reinit(
            Some(b"next".to_vec()),
            MLS10,
            suite,
            extensions.clone(),
            vec![],
        )
        .unwrap();
    deliver(&message, &mut [&mut b, &mut c]);
    let done = b.commit(vec![]).unwrap();
    b.apply_pending_commit().unwrap();
    for group in [&mut a, &mut c] {
        let received = group.process_incoming_message(done.commit_message().clone());
        let ReceivedMessage::Commit(received) = received.unwrap() else {
            panic!("no commit");
        };
        assert!(matches!(received.effect, CommitEffect::ReInit(_)));
    }
    let (a, b, c) = (
        a.get_reinit_client(None, None).unwrap(),
        b.get_reinit_client(None, None).unwrap(),
        c.get_reinit_client(None, None).unwrap(),
    );
    let packages = [&b, &c].map(|client| client.generate_key_package(None).unwrap());
    let (next, welcomes) = a.commit(packages.to_vec(), none(), None).unwrap();
    for client in [b, c] {
        client.join(&welcomes[0], tree(&next), None).unwrap();
    }
    // Spelt out, in a group of one.
    let mut a = alice.create_group(none(), none(), None).unwrap();
    a.commit_builder()
        .reinit(None, MLS10, suite, none())
        .unwrap()
        .build()
        .unwrap();
    lines.note(Keep::ButGroupInfos);
}
