//! Credentials that change: certificates of a real authority (OpenSSL's), and those that are
//! none for this identity.

use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::audit::AuditOutcome;
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::*;
use pki_types::CertificateDer;
use pki_types::pem::PemObject;

use crate::forge::*;
use crate::house::{App, House, failure};
use crate::suite::{SUITE_1, SUITE_2, Suite};

const NAME: &str = "mallory@bank.example";

fn openssl(dir: &Path, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    let output = command.args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// An authority in a directory of its own.
struct Authority(PathBuf);

impl Authority {
    fn new(house: &House, name: &str) -> Self {
        let dir = house.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let subject = format!("/CN={name}");
        openssl(
            &dir,
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
                "-days",
                "30",
                "-subj",
                &subject,
            ],
        );
        Self(dir)
    }

    fn pem(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// What it issues for a request; it looks that the request is signed.
    fn issue(&self, request: &[u8], more: &[&str]) -> Vec<Bytes> {
        std::fs::write(self.0.join("request.der"), request).unwrap();
        let verify = [
            "req",
            "-inform",
            "DER",
            "-in",
            "request.der",
            "-verify",
            "-out",
            "request.pem",
        ];
        openssl(&self.0, &verify);
        let issue = [
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-copy_extensions",
            "copyall",
            "-out",
            "issued.pem",
        ];
        openssl(&self.0, &[&issue[..], more].concat());
        let pem = std::fs::read(self.0.join("issued.pem")).unwrap();
        let der = CertificateDer::from_pem_slice(&pem).unwrap();
        vec![Bytes::from(der.as_ref())]
    }
}

struct Bank {
    house: House,
    authority: Authority,
}

impl Bank {
    /// A daemon that pins the bank's authority, and lets users have one name.
    fn new() -> Self {
        let mut house = House::new("");
        let authority = Authority::new(&house, "bank");
        house.stop();
        let mut bank = Self { house, authority };
        bank.start();
        bank
    }

    fn start(&mut self) {
        let extra = format!(
            "[policy]\ncertificate_issuers = {:?}\ncredentials = [\"mallory\", {NAME:?}]",
            self.authority.pem()
        );
        self.house.start(&extra);
    }

    fn csr(&self, new_key: bool) -> SignedCsr {
        self.try_csr(NAME, new_key).unwrap()
    }

    fn try_csr(&self, certified: &str, new_key: bool) -> Result<SignedCsr, Failure> {
        let request = SignCsr {
            owner: self.owner(),
            name: "mallory".to_owned(),
            certified: certified.to_owned(),
            new_key: new_key.then(|| NewSignatureKey {
                placement: Placement::default(),
                pin: None,
                drop_pin: false,
            }),
        };
        self.house
            .admin()
            .sign_csr(request, &Call::default())
            .map_err(failure)
    }

    fn import(&self, credential: Credential) -> Result<IdentityInfo, Failure> {
        let request = UpdateCredential {
            owner: self.owner(),
            name: "mallory".to_owned(),
            credential,
            grace: None,
        };
        let updated = self
            .house
            .admin()
            .update_credential(request, &Call::default());
        updated.map_err(failure)
    }

    fn owner(&self) -> Owner {
        self.house.keys()[0].owner.clone()
    }

    fn now(&self) -> IdentityInfo {
        let all = self.house.admin().identities(&Call::default()).unwrap();
        all.into_iter().next().unwrap().identity
    }
}

/// A leaf of an app, with this credential and signature key.
fn leaf(app: &App, credential: &Credential, signature_key: &[u8]) -> Vec<u8> {
    let mut leaf = app.leaf(&app.generate(), ALWAYS_LEAF);
    leaf.credential = match credential {
        Credential::Basic(name) => credential_of(name),
        Credential::X509(chain) => certificates(chain.iter().map(|it| it.0.as_slice())),
    };
    leaf.signature_key = signature_key.to_vec();
    leaf.tbs("", 0)
}

const ALWAYS_LEAF: Source = Source::ForAMonth;

fn credential_of(name: &[u8]) -> Vec<u8> {
    credential(std::str::from_utf8(name).unwrap())
}

fn a_certificate_is_asked_for_issued_and_pinned(suite: Suite) {
    let mut bank = Bank::new();
    let app = App::new(&bank.house, suite, "mallory");
    let before = app.me.credential.clone();
    let issued = Credential::X509(bank.authority.issue(&bank.csr(false).request, &[]));
    let key = app.me.public_key.0.clone();
    app.sign(&leaf(&app, &issued, &key)).unwrap_err();
    let updated = bank.import(issued.clone()).unwrap();
    assert_eq!((updated.key, &updated.credential), (app.me.key, &issued));
    let assert_pinned = || {
        let refused = app.sign(&leaf(&app, &before, &key)).unwrap_err();
        assert_eq!(refused.policy.as_deref(), Some("rule/binding-by-signing"));
        app.sign(&leaf(&app, &issued, &key)).unwrap();
    };
    assert_pinned();
    bank.house.stop();
    bank.start();
    assert_pinned();
    // Old and new are on record.
    let records = bank.house.records();
    let record = records
        .iter()
        .find(|it| it.action == "CredentialUpdated")
        .unwrap();
    let AuditOutcome::Noted { note } = &record.outcome else {
        panic!("{record:?}")
    };
    assert!(note.starts_with("basic \"mallory\" -> x509 "), "{note}");
    assert!(note.contains(NAME), "{note}");
    // And back again.
    bank.import(before.clone()).unwrap();
    app.sign(&leaf(&app, &before, &key)).unwrap();
}

#[test]
fn a_certificate_for_an_ed25519_key() {
    a_certificate_is_asked_for_issued_and_pinned(SUITE_1);
}

#[test]
fn a_certificate_for_a_p256_key() {
    a_certificate_is_asked_for_issued_and_pinned(SUITE_2);
}

#[test]
fn a_new_key_is_the_identitys_own_once_it_is_certified() {
    let bank = Bank::new();
    let app = App::new(&bank.house, SUITE_2, "mallory");
    let text = message(SUITE_2, "talk", 1, Sender::Member(0), &application("hello"));
    let given_up = bank.csr(true);
    let asked = bank.csr(true);
    assert_eq!(bank.now().key, app.me.key, "nothing is certified yet");
    let issued = Credential::X509(bank.authority.issue(&asked.request, &[]));
    let late = Credential::X509(bank.authority.issue(&given_up.request, &[]));
    assert!(
        bank.import(late)
            .unwrap_err()
            .message
            .contains("another key")
    );
    let updated = bank.import(issued.clone()).unwrap();
    assert_eq!(updated.key, asked.key);
    assert_eq!(updated.retiring.len(), 1);
    assert_eq!(updated.retiring[0].id, app.me.key);
    // Each group verifies with the old key until a commit brings the new one.
    app.sign(&text).unwrap();
    let new = leaf(&app, &issued, &updated.public_key.0);
    app.sign_with(updated.key, &new).unwrap();
    // Without another request there is no other key to certify.
    let again = Credential::X509(bank.authority.issue(&given_up.request, &[]));
    assert!(
        bank.import(again)
            .unwrap_err()
            .message
            .contains("another key")
    );
}

/// What policies know of a certificate is what the identity's own says.
#[test]
fn policies_know_the_names_of_the_own_certificate_alone() {
    let bank = Bank::new();
    let app = App::new(&bank.house, SUITE_2, "mallory");
    let request = bank.csr(false).request;
    let own = Credential::X509(bank.authority.issue(&request, &[]));
    let other = Credential::X509(Authority::new(&bank.house, "other").issue(&request, &[]));
    bank.import(own.clone()).unwrap();
    let key = app.me.public_key.0.clone();
    app.sign(&leaf(&app, &own, &key)).unwrap();
    app.sign(&leaf(&app, &other, &key)).unwrap_err();
    let records = bank.house.records();
    let leaves = records.iter().filter(|it| it.action == "SignLeafNode");
    let known: Vec<serde_json::Value> = leaves
        .map(|it| serde_json::from_str(it.facts.as_ref().unwrap()).unwrap())
        .collect();
    let names = known.iter().map(|it| &it["context"]["certificate_names"]);
    assert_eq!(
        names.collect::<Vec<_>>(),
        [&serde_json::json!([NAME]), &serde_json::Value::Null]
    );
    assert_eq!(known[0]["context"]["certificate_issuer"], "CN=bank");
    // And for whom it was imported is on record.
    let imported = records.iter().find(|it| it.action == "CredentialUpdated");
    assert_eq!(imported.unwrap().owner, None, "the caller's own");
}

/// DER that takes hours to be read, for whoever reads it: nobody does.
#[test]
fn what_is_endless_to_read_is_not_read() {
    let der = |tag: u8, content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x83], &length[1..], content].concat()
    };
    // A name with all the attributes in the wrong order.
    let attributes = (0..200_000_u32).rev().flat_map(|number| {
        let [_, high, middle, low] = number.to_be_bytes();
        [0x30, 8, 6, 1, 0x2a, 4, 3, high, middle, low]
    });
    let name = der(0x30, &der(0x31, &attributes.collect::<Vec<_>>()));
    let start = [2, 1, 1, 0x30, 3, 6, 1, 0x2a];
    let certificate = der(0x30, &der(0x30, &[&start[..], &name].concat()));
    let house = House::new("");
    let app = App::new(&house, SUITE_2, "mallory");
    let endless = Credential::X509(vec![Bytes(certificate)]);
    let content = leaf(&app, &endless, &app.me.public_key.0);
    for key in [app.me.key, KeyId::from_bytes([7; 16])] {
        app.sign_with(key, &content).unwrap_err();
    }
}

#[test]
fn what_is_no_certificate_of_this_identity_is_not_pinned() {
    let bank = Bank::new();
    let app = App::new(&bank.house, SUITE_2, "mallory");
    let request = bank.csr(false).request;
    let right = bank.authority.issue(&request, &[]);
    let stranger = Authority::new(&bank.house, "stranger").issue(&request, &[]);
    std::fs::write(
        bank.authority.0.join("names"),
        "subjectAltName = email:chairman@bank.example",
    )
    .unwrap();
    let mut cut = right.clone();
    cut[0].0.pop();
    let root = std::fs::read(bank.authority.pem()).unwrap();
    let root = Bytes::from(CertificateDer::from_pem_slice(&root).unwrap().as_ref());
    let with = |more: &[&Bytes]| {
        let more = more.iter().copied().cloned();
        right.iter().cloned().chain(more).collect::<Vec<_>>()
    };
    let cases = [
        (stranger.clone(), "leads to no issuer"),
        (
            bank.authority
                .issue(&request, &["-copy_extensions", "none", "-extfile", "names"]),
            "does not let this user have",
        ),
        (cut, "cannot be read"),
        (vec![right[0].clone(); 9], "1 to 8 certificates"),
        (with(&[&right[0]]), "not each issued by the next"),
        (with(&[&root, &root]), "not each issued by the next"),
        (with(&[&stranger[0]]), "not each issued by the next"),
    ];
    for (chain, why) in cases {
        let failure = bank.import(Credential::X509(chain)).unwrap_err();
        assert!(failure.message.contains(why), "{why}: {failure:?}");
        assert!(!failure.advice.is_empty());
    }
    // The issuer itself may be the last.
    bank.import(Credential::X509(with(&[&root]))).unwrap();
    bank.import(app.me.credential.clone()).unwrap();

    let chairman = Credential::Basic(Bytes::from(b"chairman@bank.example".as_slice()));
    let failure = bank.import(chairman).unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied, "{failure:?}");
    let failure = bank.try_csr("chairman@bank.example", false).unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied, "{failure:?}");
    assert_eq!(bank.now().credential, app.me.credential);

    // An app brings no certificate by itself, not even a right one.
    let request = CreateIdentity {
        name: "another".to_owned(),
        credential: Credential::X509(right),
        scheme: SUITE_2.scheme,
        placement: Placement::default(),
    };
    let created = bank
        .house
        .client()
        .create_identity(request, &Call::default());
    assert!(created.is_err());
}

#[test]
fn without_pinned_issuers_there_are_no_certificates() {
    let house = House::new("");
    App::new(&house, SUITE_2, "mallory");
    let authority = Authority::new(&house, "bank");
    let bank = Bank { house, authority };
    let issued = bank.authority.issue(&bank.csr(false).request, &[]);
    let failure = bank.import(Credential::X509(issued)).unwrap_err();
    assert!(
        failure.advice.contains("certificate_issuers"),
        "{failure:?}"
    );
}

/// What is not valid is not pinned, and what ends soon is told of.
#[test]
fn certificates_end() {
    let bank = Bank::new();
    App::new(&bank.house, SUITE_2, "mallory");
    let request = bank.csr(false).request;
    let ended = bank.authority.issue(&request, &["-days", "-1"]);
    let failure = bank.import(Credential::X509(ended)).unwrap_err();
    let why = "it ends before it begins";
    assert!(failure.message.contains(why), "{failure:?}");
    for (days, told) in [("10", "renew it"), ("90", "certified until")] {
        let issued = bank.authority.issue(&request, &["-days", days]);
        bank.import(Credential::X509(issued)).unwrap();
        let mut identities = Command::new(mlskeyd_tests::programs!().ctl);
        let output = identities
            .arg("--socket")
            .arg(bank.house.socket())
            .arg("identities")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(told), "{text}");
    }
}
