//! Losses of power are counted by the TPM like wrong passwords, if a key with a PIN
//! was used before: what that costs, and whom.

use mlskeyd_protocol::client::{AdminClient, Call, CallError, Client, ClientConfig};
use mlskeyd_protocol::v1::*;
use mlskeyd_tests::forge::{self, Sender};
use mlskeyd_tests::member::{Member, client, message};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Stage, Swtpm};
use mlskeyd_tests::suite::{SUITE_1, SUITE_2, SUITE_7, Suite, verifies};
use serde_json::Value;

use super::pin::{MOST, PIN, counted};

/// Somebody whose signature key has a PIN.
pub struct Holder {
    suite: Suite,
    client: Client,
    admin: AdminClient,
    member: Member,
    content: Vec<u8>,
    pin: &'static str,
}

impl Holder {
    /// With this name, and a key that waits for its PIN.
    pub fn new(daemon: &Daemon, name: &str, suite: Suite, pin: &'static str) -> Self {
        let admin = AdminClient::new(ClientConfig::new(daemon.socket(), "holder"));
        let request = CreateIdentityFor {
            owner: Self::owner(),
            name: name.to_owned(),
            credential: Credential::Basic(name.as_bytes().into()),
            scheme: suite.scheme,
            placement: Placement {
                device: Some("tpm".to_owned()),
                tier: None,
            },
            pin: Some(secret(pin)),
        };
        admin
            .create_identity_for(request, &Call::default())
            .unwrap();
        let client = client(&daemon.socket());
        let text = forge::application("what nobody else signs");
        Self {
            suite,
            member: Member::of_suite(&client, suite, name, "tpm").unwrap(),
            client,
            admin,
            content: forge::message(suite, "holders", 7, Sender::Member(0), &text),
            pin,
        }
    }

    fn owner() -> Owner {
        Owner {
            uid: rustix::process::geteuid().as_raw(),
            app: "default".to_owned(),
        }
    }

    /// What it signs, and nobody else.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    pub fn key(&self) -> KeyId {
        self.member.identity.key
    }

    /// Was the PIN tried?
    pub fn unlock(&self) -> Result<bool, CallError> {
        self.unlock_by(self.pin)
    }

    /// The same with any PIN.
    pub fn unlock_by(&self, pin: &str) -> Result<bool, CallError> {
        let request = UnlockIdentity {
            owner: Self::owner(),
            name: self.member.identity.name.clone(),
            key: None,
            pin: secret(pin),
            last_try: true,
        };
        let unlocked = self.admin.unlock_identity(request, &Call::default())?;
        assert_eq!(unlocked.identity.pin, KeyPin::Unlocked);
        Ok(unlocked.pin_tried)
    }

    pub fn lock(&self) {
        let request = LockIdentity {
            owner: Self::owner(),
            name: self.member.identity.name.clone(),
        };
        let locked = self.admin.lock_identity(request, &Call::default());
        assert_eq!(locked.unwrap().pin, KeyPin::Locked);
    }

    pub fn sign(&self) -> Result<(), CallError> {
        let signature = self.member.try_sign(&self.client, &self.content)?;
        let public = &self.member.identity.public_key;
        assert!(verifies(self.suite, public, &self.content, &signature));
        Ok(())
    }
}

fn secret(pin: &str) -> SecretBytes {
    SecretBytes::new(pin.as_bytes().to_vec())
}

struct Scene {
    daemon: Daemon,
    options: Options,
    tpm: Swtpm,
    _stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let tpm = Swtpm::new(&stage);
        let options = Options {
            extra: tpm.device("tpm"),
            ..Options::default()
        };
        Self {
            daemon: Daemon::start(&stage, &options),
            options,
            tpm,
            _stage: stage,
        }
    }

    fn lose_power(&mut self) {
        self.tpm.kill();
        self.tpm.start();
    }

    /// Asks the TPM, while nobody is connected.
    fn beside_the_daemon<T>(&mut self, ask: impl FnOnce(&Swtpm) -> T) -> T {
        self.daemon.stop();
        let answer = ask(&self.tpm);
        self.daemon.restart(&self.options);
        answer
    }

    /// As `mlskeyctl devices` shows it.
    fn shown(&self) -> Value {
        let devices = self.daemon.ctl(&["devices"]).unwrap();
        let mut devices = devices.as_array().unwrap().iter();
        let tpm = devices.find(|device| device["name"] == "tpm").unwrap();
        assert_eq!(tpm["state"], "ready");
        tpm["facts"]["lockout"].clone()
    }
}

/// What a person can do about it is in the text.
fn names_the_lockout(text: &str) {
    let losses = format!("after {MOST} wrong passwords, or losses of power");
    for words in [
        losses.as_str(),
        "every 1000 s",
        "tpm2_dictionarylockout --clear-lockout",
    ] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn losses_of_power_lock_out_keys_with_a_pin_and_no_others() {
    let mut scene = Scene::new();
    let others = [SUITE_1, SUITE_2, SUITE_7].map(|suite| {
        let client = client(&scene.daemon.socket());
        let name = format!("without, suite {}", suite.number);
        let member = Member::of_suite(&client, suite, &name, "tpm").unwrap();
        (client, member, message(suite))
    });
    let others_go_on = || {
        for (client, member, content) in &others {
            member.sign(client, content);
            member.generate(client);
        }
    };
    let holders = [SUITE_1, SUITE_2].map(|suite| {
        let name = format!("with a PIN, suite {}", suite.number);
        Holder::new(&scene.daemon, &name, suite, PIN)
    });
    // More often than a PIN could be wrong.
    for _ in 0..=MOST {
        others_go_on();
        scene.lose_power();
    }
    assert_eq!(scene.beside_the_daemon(counted), 0);

    for holder in &holders {
        assert!(holder.unlock().unwrap());
    }
    for losses in 0..MOST {
        assert!(scene.shown().is_null(), "after {losses} losses");
        holders[losses as usize % 2].sign().unwrap();
        others_go_on();
        scene.lose_power();
    }
    for holder in &holders {
        // The daemon has its value, and the TPM does not take it.
        names_the_lockout(&holder.sign().unwrap_err().to_string());
    }
    names_the_lockout(scene.shown().as_str().unwrap());
    for holder in &holders {
        holder.lock();
        names_the_lockout(&holder.unlock().unwrap_err().to_string());
    }
    // One more changes nothing.
    scene.lose_power();
    others_go_on();
    names_the_lockout(scene.shown().as_str().unwrap());
    assert_eq!(scene.beside_the_daemon(counted), MOST);
    names_the_lockout(&holders[0].unlock().unwrap_err().to_string());

    scene.beside_the_daemon(|tpm| tpm.tool(&["dictionarylockout", "--clear-lockout"]));
    for holder in &holders {
        assert!(holder.unlock().unwrap());
        holder.sign().unwrap();
    }
    assert!(scene.shown().is_null());
    others_go_on();
}
