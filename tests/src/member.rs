//! A member who asks the daemon directly: what OpenMLS would ask, by
//! hand, again and again.

use std::path::Path;

use mlskeyd_protocol::client::{Call, Client, ClientConfig};
use mlskeyd_protocol::v1::*;

use crate::forge::{self, Leaf, Sender, Source};
use crate::suite::{SUITE_2, sealed};

const GROUP: &str = "g";
const EPOCH: u64 = 7;

/// What is sealed to the member's leaf.
const PATH_SECRET: [u8; 32] = [7; 32];

/// A client of a daemon, by whose socket it is found.
pub fn client(socket: &Path) -> Client {
    Client::new(ClientConfig::new(socket, "mlskeyd-tests"))
}

/// A member in cipher suite 0x0002, whose keys are on one device. It may use
/// any client.
#[derive(Clone)]
pub struct Member {
    /// The identity with its signature key.
    pub identity: IdentityInfo,
    placement: Placement,
}

/// A member's place in one group: what it signs and opens there.
#[derive(Clone)]
pub struct Seat {
    member: Member,
    message: Vec<u8>,
    path_secret: Open,
}

impl Seat {
    /// Makes a leaf key and binds it to the group by a commit's leaf.
    pub fn take(member: &Member, client: &Client) -> Self {
        let key = member.generate(client);
        let leaf = member.leaf(&key.public_key, Source::Commit);
        member.sign(client, &leaf.tbs(GROUP, 0));
        let context = forge::group_context(SUITE_2, GROUP, EPOCH);
        let info = forge::labelled("UpdatePathNode", &context);
        let text = forge::application(&"text ".repeat(25));
        Self {
            member: member.clone(),
            message: forge::message(SUITE_2, GROUP, EPOCH, Sender::Member(0), &text),
            path_secret: sealed(SUITE_2, &key, &info, &PATH_SECRET),
        }
    }

    /// Signs an application message, always of the same epoch.
    pub fn speak(&self, client: &Client) -> Bytes {
        self.member.sign(client, &self.message)
    }

    /// What [`Self::speak`] signs.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Opens a path secret.
    ///
    /// # Panics
    /// If it opens to anything else.
    pub fn open(&self, client: &Client) {
        let opened = client.open(self.path_secret.clone(), &Call::default());
        assert_eq!(opened.expect("it opens").expose(), PATH_SECRET);
    }
}

impl Member {
    /// Makes an identity, or finds the one of this name.
    pub fn new(client: &Client, name: &str, device: &str) -> Self {
        let placement = Placement {
            device: Some(device.to_owned()),
            tier: None,
        };
        let request = CreateIdentity {
            name: name.to_owned(),
            credential: Credential::Basic(name.as_bytes().into()),
            scheme: SUITE_2.scheme,
            placement: placement.clone(),
        };
        let identity = client.create_identity(request, &Call::default());
        Self {
            identity: identity.expect("an identity"),
            placement,
        }
    }

    /// Makes an HPKE key.
    pub fn generate(&self, client: &Client) -> GeneratedHpke {
        let request = GenerateHpke {
            kem: SUITE_2.kem,
            placement: self.placement.clone(),
        };
        let made = client.generate_hpke(request, &Call::default());
        made.expect("a key")
    }

    /// Makes the keys of a KeyPackage, init and leaf, and signs it.
    pub fn key_package(&self, client: &Client) -> [GeneratedHpke; 2] {
        let keys = [self.generate(client), self.generate(client)];
        let [init, leaf] = &keys;
        let leaf = self.leaf(&leaf.public_key, forge::ALWAYS);
        let leaf = leaf.signed(&self.sign(client, &leaf.tbs("", 0)));
        let package = forge::key_package(SUITE_2, &init.public_key, &leaf, false);
        self.sign(client, &forge::key_package_tbs(&package));
        keys
    }

    /// A leaf as an honest app makes it.
    pub fn leaf(&self, encryption_key: &Bytes, source: Source) -> Leaf {
        Leaf {
            encryption_key: encryption_key.0.clone(),
            signature_key: self.identity.public_key.0.clone(),
            credential: forge::credential(&self.identity.name),
            source,
            extensions: Vec::new(),
        }
    }

    /// Signs a SignContent.
    pub fn sign(&self, client: &Client, content: &[u8]) -> Bytes {
        let request = Sign {
            key: self.identity.key,
            content: SecretBytes::new(content.to_vec()),
        };
        client.sign(request, &Call::default()).expect("a signature")
    }
}
