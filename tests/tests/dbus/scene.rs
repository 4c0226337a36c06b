//! A daemon on a private bus, and those who are there as well.

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use futures::StreamExt;
use mlskeyd_protocol::client::{Call, Client};
use mlskeyd_protocol::v1::{CreateIdentity, Credential, IdentityInfo, Placement, SignatureScheme};
use mlskeyd_tests::member::client;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Bus, Daemon, Options, Process, Stage};
use tokio::runtime::Runtime;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, OwnedVariant};

pub(crate) const NAME: &str = "org.mlskeyd.Custody1";
pub(crate) const ROOT: &str = "/org/mlskeyd/Custody1";
pub(crate) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
pub(crate) const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

/// Somebody whose keys are none of the tests': `nobody`, since a bus serves only users who have
/// a name.
pub(crate) const STRANGER: u32 = 65_534;

/// What the ObjectManager lists.
pub(crate) type Objects = HashMap<OwnedObjectPath, HashMap<String, HashMap<String, OwnedVariant>>>;

pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) options: Options,
    pub(crate) bus: Bus,
    pub(crate) stage: Stage,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// The same, with more of the configuration.
    pub(crate) fn with(extra: &str) -> Self {
        let stage = Stage::new(programs!());
        let bus = Bus::start(&stage);
        let options = Options {
            extra: format!("{extra}\n{}", bus.section()),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        Self {
            daemon,
            options,
            bus,
            stage,
        }
    }

    /// Somebody on the bus: this process, once more.
    pub(crate) fn guest(&self) -> Guest {
        Guest::new(&self.bus.address())
    }

    /// The same user, at the socket.
    pub(crate) fn client(&self) -> Client {
        client(&self.daemon.socket())
    }

    /// The example in Python, as this user, with these arguments.
    pub(crate) fn python(&self, user: u32, arguments: &[&str]) -> Command {
        let copy = self.stage.path("python");
        if !copy.exists() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/examples/python");
            std::fs::create_dir(&copy).unwrap();
            for file in ["mlskeyd.py", "custody.py"] {
                std::fs::copy(source.join(file), copy.join(file)).unwrap();
            }
            std::fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        }
        // Debian's own, which has its packages.
        let mut command = Command::new("/usr/bin/python3");
        command.arg("-B").arg(copy.join("custody.py"));
        command.args(["--bus", &self.bus.address()]).args(arguments);
        command.current_dir("/").env_clear();
        if user != rustix::process::geteuid().as_raw() {
            command.gid(user).uid(user);
        }
        command
    }

    /// What that prints.
    pub(crate) fn python_prints(&self, user: u32, arguments: &[&str]) -> String {
        let output = self.python(user, arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Why it fails.
    pub(crate) fn python_fails(&self, user: u32, arguments: &[&str]) -> String {
        let output = self.python(user, arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let why = text.strip_prefix("custody.py: ");
        why.unwrap_or_else(|| panic!("{}: {text}", output.status))
            .to_owned()
    }

    /// The same, beside others.
    pub(crate) fn start_python(&self, user: u32, arguments: &[&str]) -> Process {
        let command = self.python(user, arguments);
        Process::start("python", command, &self.stage.path("python.log"))
    }
}

/// Has an identity made on the software device.
pub(crate) fn create(client: &Client, name: &str) -> IdentityInfo {
    let request = CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(name.as_bytes().into()),
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
    };
    client.create_identity(request, &Call::default()).unwrap()
}

/// A connection to the bus.
pub(crate) struct Guest {
    runtime: Runtime,
    pub(crate) bus: Connection,
    signals: Receiver<Message>,
}

/// The name of an error, and its text.
pub(crate) type BusError = (String, String);

impl Guest {
    pub(crate) fn new(address: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let bus = zbus::connection::Builder::address(address);
        let bus = runtime.block_on(bus.build()).unwrap();
        let mut messages = MessageStream::from(&bus);
        let (hears, signals) = channel();
        // Whoever does not read what is there stops all that follows.
        runtime.spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let header = message.header();
                let of_bus = header
                    .sender()
                    .is_none_or(|it| !it.as_str().starts_with(':'));
                if message.message_type() == Type::Signal && !of_bus {
                    let _ = hears.send(message.clone());
                }
            }
        });
        Self {
            runtime,
            bus,
            signals,
        }
    }

    /// Calls a method.
    pub(crate) fn call<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<Message, BusError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let call = self
            .bus
            .call_method(Some(NAME), path, Some(interface), method, body);
        self.runtime.block_on(call).map_err(|error| match error {
            zbus::Error::MethodError(name, text, _) => (name.to_string(), text.unwrap_or_default()),
            zbus::Error::FDO(error) => {
                use zbus::DBusError as _;
                let text = error.description().unwrap_or_default().to_owned();
                (error.name().to_string(), text)
            }
            other => panic!("{method} at {path}: {other}"),
        })
    }

    /// Sends messages all at once, and waits for what is answered to each: the name of the
    /// error, if it is one.
    pub(crate) fn exchange(&self, calls: &[Message]) -> Vec<Result<(), String>> {
        self.runtime.block_on(async {
            let mut answers = MessageStream::from(&self.bus);
            let serials: Vec<_> = calls
                .iter()
                .map(|it| it.primary_header().serial_num())
                .collect();
            let mut found = HashMap::new();
            let sending = self.bus.send_all(calls);
            let receiving = async {
                while found.len() < serials.len() {
                    let message = answers.next().await.unwrap().unwrap();
                    let header = message.header();
                    let Some(serial) = header.reply_serial().filter(|it| serials.contains(it))
                    else {
                        continue;
                    };
                    let error = header.error_name().map(|name| name.to_string());
                    found.insert(serial, error.map_or(Ok(()), Err));
                }
            };
            let (sent, ()) = tokio::join!(sending, receiving);
            sent.unwrap();
            found.into_values().collect()
        })
    }

    /// Sends a message, whatever comes of it.
    pub(crate) fn send(&self, message: &Message) {
        self.runtime.block_on(self.bus.send(message)).unwrap();
    }

    /// Waits until the daemon is there and has this object.
    pub(crate) fn await_object(&self, path: &str) {
        let introspectable = "org.freedesktop.DBus.Introspectable";
        while self.call(path, introspectable, "Introspect", &()).is_err() {
            std::thread::yield_now();
        }
    }

    /// The name of the error of a call that fails.
    pub(crate) fn error<B>(&self, path: &str, interface: &str, method: &str, body: &B) -> String
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let answer = self.call(path, interface, method, body);
        answer.map(|_| ()).expect_err(method).0
    }

    pub(crate) fn objects(&self) -> Objects {
        let answer = self.call(ROOT, OBJECT_MANAGER, "GetManagedObjects", &());
        answer.unwrap().body().deserialize().unwrap()
    }

    pub(crate) fn get(&self, path: &str, interface: &str, name: &str) -> OwnedVariant {
        let answer = self.call(path, PROPERTIES, "Get", &(interface, name));
        answer.unwrap().body().deserialize().unwrap()
    }

    /// The next signal from the daemon, whatever it is.
    pub(crate) fn signal(&mut self) -> Message {
        self.signals.recv().unwrap()
    }

    /// The next signals, which have to have these names in this order; their texts.
    pub(crate) fn signals(&mut self, wanted: &[&str]) -> Vec<Message> {
        let signals: Vec<_> = wanted.iter().map(|_| self.signal()).collect();
        let names: Vec<_> = signals.iter().map(member).collect();
        assert_eq!(names, wanted);
        signals
    }
}

pub(crate) fn member(message: &Message) -> String {
    message.header().member().unwrap().to_string()
}
