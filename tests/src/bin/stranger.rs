//! Another user's process, which got hold of an app's key ids: tries all that
//! it can do with them, and prints what came of each, one line of JSON.
//! Arguments: the socket, a signature key and an HPKE key (hexadecimal), a
//! content to be signed (hexadecimal), an identity's name, a storage's name. With the
//! socket alone it does what an honest app does.

use std::fmt::Debug;

use mlskeyd_protocol::client::{AdminClient, Call, CallError, Client, ClientConfig};
use mlskeyd_protocol::v1::*;
use mlskeyd_tests::forge::{self, Leaf, Source};
use mlskeyd_tests::suite::{SUITE_1, sealed};

fn tell<T: Debug>(what: &str, outcome: Result<T, CallError>) {
    let line = match outcome {
        Ok(reply) => serde_json::json!({ "what": what, "reply": format!("{reply:?}") }),
        Err(CallError::Failure(failure)) => serde_json::json!({
            "what": what,
            "code": format!("{:?}", failure.code),
            "failure": failure,
        }),
        Err(other) => serde_json::json!({ "what": what, "error": other.to_string() }),
    };
    println!("{line}");
}

/// Makes keys, signs with one and opens with another.
fn live(client: &Client) {
    let call = Call::default();
    let request = CreateIdentity {
        name: "stranger".to_owned(),
        credential: Credential::Basic(Bytes::from(b"stranger".as_slice())),
        scheme: SUITE_1.scheme,
        placement: Placement::default(),
    };
    let me = client.create_identity(request, &call);
    let me = me.expect("anybody has an identity");
    let request = GenerateHpke {
        kem: SUITE_1.kem,
        placement: Placement::default(),
    };
    let made = client.generate_hpke(request, &call);
    tell("make", made.as_ref().map_err(Clone::clone));
    let Ok(made) = made else { return };
    let leaf = Leaf {
        encryption_key: made.public_key.0.clone(),
        signature_key: me.public_key.0.clone(),
        credential: forge::credential("stranger"),
        source: Source::Update,
        extensions: Vec::new(),
    };
    let sign = Sign {
        key: me.key,
        content: SecretBytes::new(leaf.tbs("talk", 0)),
    };
    tell("sign", client.sign(sign, &call));
    let context = forge::group_context(SUITE_1, "talk", 1);
    let info = forge::labelled("UpdatePathNode", &context);
    let open = sealed(SUITE_1, &made, &info, &SUITE_1.path_secret());
    tell("open", client.open(open, &call).map(|_| "a path secret"));
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [socket] = arguments.as_slice() {
        return live(&Client::new(ClientConfig::new(socket, "stranger")));
    }
    let [socket, signature_key, hpke_key, content, identity, storage] = arguments.as_slice() else {
        panic!("six arguments are expected, not {arguments:?}");
    };
    let key = |text: &str| KeyId::from_hex(text).expect("a key id");
    let (signature_key, hpke_key) = (key(signature_key), key(hpke_key));
    let content = hex::decode(content).expect("content in hexadecimal");
    let config = ClientConfig::new(socket, "stranger");
    let client = Client::new(config.clone());
    let call = Call::default();

    let sign = |key| Sign {
        key,
        content: SecretBytes::new(content.clone()),
    };
    let open = |key, kem| Open {
        key,
        kem,
        aead: Aead::Aes128Gcm,
        enc: Bytes(vec![9; 32]),
        info: Bytes(content.clone()),
        aad: Bytes::default(),
        ciphertext: Bytes(vec![0; 48]),
    };
    let claim = |storage: &str| Claim {
        storage: storage.to_owned(),
        record: Record::KeyPackage {
            reference: Bytes(vec![1; 32]),
        },
        keys: vec![signature_key, hpke_key],
    };
    tell("status", client.status(&call));
    tell("sign", client.sign(sign(signature_key), &call));
    tell("sign with an HPKE key", client.sign(sign(hpke_key), &call));
    tell("open", client.open(open(hpke_key, Kem::DhKemX25519), &call));
    tell(
        "open by another KEM",
        client.open(open(hpke_key, Kem::DhKemP256), &call),
    );
    tell(
        "open with a signature key",
        client.open(open(signature_key, Kem::DhKemX25519), &call),
    );
    tell("prepare", client.prepare(identity, &call));
    tell("identities", client.identities(&call));
    let leave = LeaveCustody {
        identity: identity.clone(),
        group: Bytes(b"g".to_vec()),
        signature_key: Bytes(vec![1; 32]),
    };
    tell("leave", client.leave_custody(leave, &call));
    tell("claim", client.claim(claim("mine"), &call));
    tell(
        "claim in the other's storage",
        client.claim(claim(storage), &call),
    );
    let settlements = vec![Settlement::Deleted {
        record: Record::KeyPackage {
            reference: Bytes(vec![1; 32]),
        },
        generation: None,
    }];
    let settle = Settle {
        storage: storage.clone(),
        settlements,
    };
    tell("settle", client.settle(settle, &call));
    let looked = Looked {
        storage: storage.clone(),
        found: vec![Look {
            key: hpke_key,
            records: Vec::new(),
        }],
    };
    tell("looked", client.looked(looked, &call));
    let attached = client.attach(storage.as_str(), true, &call);
    tell("attach", attached.map(|(_, next)| next));
    let admin = AdminClient::new(config);
    tell("administer", admin.sweep(&call));
}
