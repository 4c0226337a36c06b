//! What is shown on the desktop: one that follows no script but notes what it is told.

use std::collections::HashMap;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{SecretBytes, Sign};
use mlskeyd_tests::rig::{PIN, Process, Stage};
use mlskeyd_virtual_yubikey::control::FingerOrder;

use super::scene::{Scene, create, refusal};

/// What the desktop was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Show(String),
    Close(u32),
}

struct Desktop(Sender<Told>, u32);

#[zbus::interface(name = "org.freedesktop.Notifications")]
impl Desktop {
    #[expect(clippy::too_many_arguments, reason = "the specification's")]
    fn notify(
        &mut self,
        _app: String,
        _replaces: u32,
        _icon: String,
        _summary: String,
        body: String,
        _actions: Vec<String>,
        _hints: HashMap<String, zbus::OwnedVariant>,
        _expires: i32,
    ) -> u32 {
        self.0.send(Told::Show(body)).unwrap();
        self.1 += 1;
        self.1
    }

    fn close_notification(&self, id: u32) {
        self.0.send(Told::Close(id)).unwrap();
    }
}

/// A session bus with a desktop on it.
struct Session {
    address: String,
    told: Receiver<Told>,
    _runtime: tokio::runtime::Runtime,
    _connection: zbus::Connection,
    _bus: Process,
}

impl Session {
    fn new(stage: &Stage) -> Self {
        let mut command = Command::new("dbus-daemon");
        let address = format!("unix:path={}", stage.path("bus").display());
        command.args(["--session", "--nofork", "--print-address=1"]);
        command.arg(format!("--address={address}"));
        let mut bus = Process::start("dbus-daemon", command, &stage.path("bus.log"));
        bus.line().expect("its address");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (tells, told) = channel();
        let connection = runtime.block_on(async {
            let builder = zbus::connection::Builder::address(address.as_str());
            let builder = builder.name("org.freedesktop.Notifications");
            let desktop = Desktop(tells, 0);
            let builder = builder.serve_at("/org/freedesktop/Notifications", desktop);
            builder.build().await.unwrap()
        });
        Self {
            address,
            told,
            _runtime: runtime,
            _connection: connection,
            _bus: bus,
        }
    }
}

#[test]
fn a_touch_is_asked_for_as_long_as_it_is_waited_for_and_a_refusal_is_shown() {
    let more = "consent_slot = \"9e\"\n[policy]\nconsent_device = \"yubikey\"";
    let mut scene = Scene::with(&["--consent", "9e"], more);
    let session = Session::new(&scene.stage);
    let mut ctl = Command::new(&scene.stage.programs().ctl);
    ctl.env("DBUS_SESSION_BUS_ADDRESS", &session.address);
    let _agent = scene.agent_as("agent", &[&format!("pin {PIN}")], ctl);
    let client = scene.client();
    scene.cards.finger(scene.card, FingerOrder::Waits);
    let identity = std::thread::scope(|scope| {
        let creating = scope.spawn(|| create(&client, "alice"));
        let Told::Show(text) = session.told.recv().unwrap() else {
            panic!("nothing to be closed yet")
        };
        for told in ["touch yubikey", "CreateIdentity", "alice"] {
            assert!(text.contains(told), "{text}");
        }
        scene.cards.finger(scene.card, FingerOrder::Now);
        assert_eq!(session.told.recv().unwrap(), Told::Close(1));
        creating.join().unwrap().unwrap()
    });

    // What is over at once is not shown: the next that is shown is the refusal.
    create(&client, "bob").unwrap();
    let sign = Sign {
        key: identity.key,
        content: SecretBytes::new(b"no structure of MLS".to_vec()),
    };
    refusal(client.sign(sign, &Call::default()));
    let Told::Show(text) = session.told.recv().unwrap() else {
        panic!("nothing to be closed yet")
    };
    assert!(
        text.contains("refused the app default SignUnknown"),
        "{text}"
    );
}
