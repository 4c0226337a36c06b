//! A member who asks the daemon directly: what OpenMLS would ask, by
//! hand, again and again.

use std::path::Path;

use mlskeyd_protocol::client::{Call, CallError, Client, ClientConfig};
use mlskeyd_protocol::v1::*;

use crate::forge::{self, Leaf, Sender, Source};
use crate::suite::{SUITE_2, Suite, sealed};

const GROUP: &str = "g";
const EPOCH: u64 = 7;

/// What is sealed to the member's leaf.
pub const PATH_SECRET: [u8; 32] = [7; 32];

/// A client of a daemon, by whose socket it is found.
pub fn client(socket: &Path) -> Client {
    Client::new(ClientConfig::new(socket, "mlskeyd-tests"))
}

/// A member in one cipher suite, whose keys are on one device. It may use any
/// client.
#[derive(Clone)]
pub struct Member {
    /// The identity with its signature key.
    pub identity: IdentityInfo,
    suite: Suite,
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
        let suite = member.suite;
        let context = forge::group_context(suite, GROUP, EPOCH);
        let info = forge::labelled("UpdatePathNode", &context);
        Self {
            member: member.clone(),
            message: message(suite),
            path_secret: sealed(suite, &key, &info, &PATH_SECRET),
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
        self.try_open(client).expect("it opens");
    }

    /// The same.
    ///
    /// # Errors
    /// As [`Client::open`].
    ///
    /// # Panics
    /// If it opens to anything else.
    pub fn try_open(&self, client: &Client) -> Result<(), CallError> {
        let opened = client.open(self.path_secret.clone(), &Call::default())?;
        assert_eq!(opened.expose(), PATH_SECRET);
        Ok(())
    }
}

/// An application message, always of the same epoch.
pub fn message(suite: Suite) -> Vec<u8> {
    let text = forge::application(&"text ".repeat(25));
    forge::message(suite, GROUP, EPOCH, Sender::Member(0), &text)
}

impl Member {
    /// Makes an identity in cipher suite 0x0002, or finds the one of this name.
    pub fn new(client: &Client, name: &str, device: &str) -> Self {
        let made = Self::of_suite(client, SUITE_2, name, device);
        made.expect("an identity")
    }

    /// The same in any suite.
    ///
    /// # Errors
    /// As [`Client::create_identity`].
    pub fn of_suite(
        client: &Client,
        suite: Suite,
        name: &str,
        device: &str,
    ) -> Result<Self, CallError> {
        let placement = Placement {
            device: Some(device.to_owned()),
            tier: None,
        };
        let request = CreateIdentity {
            name: name.to_owned(),
            credential: Credential::Basic(name.as_bytes().into()),
            scheme: suite.scheme,
            placement: placement.clone(),
        };
        Ok(Self {
            identity: client.create_identity(request, &Call::default())?,
            suite,
            placement,
        })
    }

    /// Makes an HPKE key.
    pub fn generate(&self, client: &Client) -> GeneratedHpke {
        self.try_generate(client).expect("a key")
    }

    /// The same.
    ///
    /// # Errors
    /// As [`Client::generate_hpke`].
    pub fn try_generate(&self, client: &Client) -> Result<GeneratedHpke, CallError> {
        let request = GenerateHpke {
            kem: self.suite.kem,
            placement: self.placement.clone(),
        };
        client.generate_hpke(request, &Call::default())
    }

    /// Makes the keys of a KeyPackage, init and leaf, and signs it.
    pub fn key_package(&self, client: &Client) -> [GeneratedHpke; 2] {
        self.try_key_package(client).expect("a KeyPackage")
    }

    /// The same.
    ///
    /// # Errors
    /// As [`Client::generate_hpke`] and [`Client::sign`].
    pub fn try_key_package(&self, client: &Client) -> Result<[GeneratedHpke; 2], CallError> {
        let keys = [self.try_generate(client)?, self.try_generate(client)?];
        let [init, leaf] = &keys;
        let leaf = self.leaf(&leaf.public_key, forge::ALWAYS);
        let leaf = leaf.signed(&self.try_sign(client, &leaf.tbs("", 0))?);
        let package = forge::key_package(self.suite, &init.public_key, &leaf, false);
        self.try_sign(client, &forge::key_package_tbs(&package))?;
        Ok(keys)
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
        self.try_sign(client, content).expect("a signature")
    }

    /// The same.
    ///
    /// # Errors
    /// As [`Client::sign`].
    pub fn try_sign(&self, client: &Client, content: &[u8]) -> Result<Bytes, CallError> {
        let request = Sign {
            key: self.identity.key,
            content: SecretBytes::new(content.to_vec()),
        };
        client.sign(request, &Call::default())
    }
}

/// Has a record of a storage name the keys of a KeyPackage, as the provider does: a
/// daemon keeps few that none names.
pub fn keep(client: &Client, storage: &str, keys: &[GeneratedHpke; 2]) {
    let record = record(keys);
    let claim = Claim {
        storage: storage.to_owned(),
        record: record.clone(),
        keys: keys.iter().map(|key| key.key).collect(),
    };
    let claimed = client.claim(claim, &Call::default()).expect("a claim");
    let generation = claimed.generation;
    settle(client, storage, Settlement::Written { record, generation });
}

/// Deletes that record.
pub fn let_go(client: &Client, storage: &str, keys: &[GeneratedHpke; 2]) {
    let deleted = Settlement::Deleted {
        record: record(keys),
        generation: None,
    };
    settle(client, storage, deleted);
}

fn settle(client: &Client, storage: &str, settlement: Settlement) {
    let settle = Settle {
        storage: storage.to_owned(),
        settlements: vec![settlement],
    };
    let settled = client.settle(settle, &Call::default());
    settled.expect("it is settled");
}

fn record([init, _]: &[GeneratedHpke; 2]) -> Record {
    Record::KeyPackage {
        reference: Bytes(init.key.as_bytes().to_vec()),
    }
}
