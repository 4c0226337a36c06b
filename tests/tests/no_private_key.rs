//! No private key in the app: messengers chat with their keys in custody, and
//! neither their memory nor their files hold one of them.
//!
//! What the searches are able to find is shown in `scan.rs`.

use mlskeyd_protocol::v1::Purpose;
use mlskeyd_tests::programs;
use mlskeyd_tests::registry_keys::RegistryKeys;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Stage};
use mlskeyd_tests::scan::encodings::Searcher;
use mlskeyd_tests::scan::{Kind, Snapshot, windows};

/// A group's life, told through its messengers.
struct Story {
    daemon: Daemon,
    chats: Vec<Chat>,
    keys: RegistryKeys,
    /// How many windows were multiplied out.
    windows: usize,
}

impl Story {
    /// Has one messenger do something, and all others receive it.
    fn tell(&mut self, who: usize, command: &str) {
        self.chats[who].ok(command);
        for (other, chat) in self.chats.iter_mut().enumerate() {
            if other != who {
                chat.ok("receive");
            }
        }
        self.search();
    }

    /// Searches all messengers for all keys that ever were in custody.
    fn search(&mut self) {
        self.keys.look(&self.daemon);
        let searcher = Searcher::new(&self.keys.private());
        for chat in &self.chats {
            let snapshot = snapshot(chat);
            let findings = searcher.find(&snapshot);
            assert!(findings.is_empty(), "{}: {findings:#?}", chat.name());
        }
    }

    /// Multiplies out all messengers' memory.
    fn multiply_out(&mut self) {
        self.keys.look(&self.daemon);
        let public = self.keys.public();
        for chat in &self.chats {
            let searched = windows::find(&snapshot(chat), &public);
            assert!(
                searched.findings.is_empty(),
                "{}: {searched:#?}",
                chat.name()
            );
            self.windows += searched.windows;
        }
    }
}

fn snapshot(chat: &Chat) -> Snapshot {
    let snapshot = Snapshot::of_child(chat.pid(), Some(chat.directory())).unwrap();
    assert!(snapshot.size(Kind::WritableMemory) > 1 << 16);
    assert!(snapshot.size(Kind::File) > 1 << 12, "its database");
    snapshot
}

fn nothing_is_found(suite: u16) {
    let stage = Stage::new(programs!());
    let daemon = Daemon::start(&stage, &Options::default());
    let hub = Hub::start(&stage);
    let chats =
        ["alice", "bob", "carol"].map(|name| Chat::start(&stage, &daemon, &hub, name, suite));
    let mut story = Story {
        daemon,
        chats: chats.into(),
        keys: RegistryKeys::default(),
        windows: 0,
    };
    let [alice, bob, carol] = [0, 1, 2];

    for chat in &mut story.chats {
        chat.ok("keypackage");
    }
    story.search();
    story.multiply_out();
    story.tell(alice, "create team");
    story.tell(alice, "add team bob");
    story.tell(alice, "send team Hello Bob, can you read me?");
    story.tell(bob, "send team Loud and clear.");
    story.tell(bob, "update team");
    story.tell(bob, "propose-update team");
    story.tell(alice, "add team carol");
    story.multiply_out();
    story.chats[bob].quit();
    story.chats[bob].restart();
    story.tell(bob, "send team I am back.");
    story.daemon.stop();
    story.daemon.restart(&Options::default());
    story.tell(carol, "send team Did anybody notice?");
    story.tell(carol, "update team");
    story.tell(alice, "remove team carol");
    story.tell(carol, "external-join team");
    story.tell(carol, "send team Here I am again.");
    story.multiply_out();

    let authenticators: Vec<_> = (story.chats.iter_mut())
        .map(|chat| chat.ok("authenticator team").text)
        .collect();
    assert!(
        authenticators.iter().all(|one| *one == authenticators[0]),
        "{authenticators:?}"
    );

    // It was the right keys that were searched for, and enough of them: three
    // signature keys and KeyPackages, and a leaf key for each of these, the
    // group, three updates, the proposal, the removal and the join.
    let public = story.keys.public();
    for (id, key) in &story.keys.keys {
        let private = key.private.as_slice().try_into().unwrap();
        assert!(public.owner(private).is_some(), "{id}");
    }
    let counts =
        [Purpose::Signature, Purpose::Init, Purpose::Leaf].map(|role| story.keys.count(role));
    eprintln!(
        "signature, init and leaf keys: {counts:?}; {} windows",
        story.windows
    );
    assert!(
        counts[0] == 3 && counts[1] == 3 && counts[2] >= 9,
        "{counts:?}"
    );
    for chat in &mut story.chats {
        chat.quit();
    }
    // Not after their end, either.
    let searcher = Searcher::new(&story.keys.private());
    for chat in &story.chats {
        let snapshot = Snapshot::of_files(chat.directory()).unwrap();
        let findings = searcher.find(&snapshot);
        assert!(findings.is_empty(), "{}: {findings:#?}", chat.name());
    }
    story.daemon.stop();
}

#[test]
fn with_x25519_and_ed25519() {
    nothing_is_found(1);
}

#[test]
fn with_p256() {
    nothing_is_found(2);
}
