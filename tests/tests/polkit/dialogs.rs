//! A person who is asked: by an agent, as desktops have one.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use mlskeyd_tests::rig::Process;
use tokio::runtime::Runtime;
use zbus::{Connection, Variant};

use crate::answers::{Values, await_line};
use crate::scene::{NOBODY, Scene};

const NAME: &str = "org.freedesktop.PolicyKit1";
const PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
const AUTHORITY: &str = "org.freedesktop.PolicyKit1.Authority";

/// What the person does.
#[derive(Clone, Copy)]
enum Person {
    Authenticates,
    Dismisses,
    Waits,
}

/// What the agent was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Begin { action: String, message: String },
    Cancel,
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.PolicyKit1.Error")]
enum AgentError {
    Cancelled(String),
}

struct Dialogs {
    person: Person,
    tells: Sender<Told>,
    bus: Connection,
}

#[zbus::interface(name = "org.freedesktop.PolicyKit1.AuthenticationAgent")]
impl Dialogs {
    async fn begin_authentication(
        &self,
        action: String,
        message: String,
        _icon: String,
        _details: HashMap<String, String>,
        cookie: String,
        identities: Vec<(String, Values)>,
    ) -> Result<(), AgentError> {
        self.tells.send(Told::Begin { action, message }).unwrap();
        match self.person {
            Person::Authenticates => {
                // As polkit's helper says, which is root, when the password was right.
                let body = (0_u32, cookie, &identities[0]);
                let method = "AuthenticationAgentResponse2";
                let told = self
                    .bus
                    .call_method(Some(NAME), PATH, Some(AUTHORITY), method, &body);
                told.await.expect("polkit believes root");
                Ok(())
            }
            Person::Dismisses => Err(AgentError::Cancelled("dismissed".to_owned())),
            Person::Waits => std::future::pending().await,
        }
    }

    fn cancel_authentication(&self, _cookie: String) {
        self.tells.send(Told::Cancel).unwrap();
    }
}

/// An agent for one process.
struct Agent {
    told: Receiver<Told>,
    _runtime: Runtime,
    _bus: Connection,
}

impl Agent {
    fn new(scene: &Scene, process: &Process, person: Person) -> Self {
        let pid = process.pid().as_raw_nonzero().get();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let started: u64 = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
        let runtime = Runtime::new().unwrap();
        let (tells, told) = channel();
        let bus = runtime.block_on(async {
            let address = scene.bus.address();
            let bus = zbus::connection::Builder::address(address.as_str());
            let bus = bus.build().await.unwrap();
            let dialogs = Dialogs {
                person,
                tells,
                bus: bus.clone(),
            };
            let path = "/org/mlskeyd/agent";
            bus.object_server().at(path, dialogs).await.unwrap();
            let subject = HashMap::from([
                ("pid", Variant::from(pid.cast_unsigned())),
                ("start-time", Variant::from(started)),
                ("uid", Variant::from(NOBODY.cast_signed())),
            ]);
            let body = (("unix-process", subject), "C", path);
            let method = "RegisterAuthenticationAgent";
            let registered = bus.call_method(Some(NAME), PATH, Some(AUTHORITY), method, &body);
            registered.await.unwrap();
            bus
        });
        Self {
            told,
            _runtime: runtime,
            _bus: bus,
        }
    }
}

fn begins() -> Told {
    Told::Begin {
        action: "org.mlskeyd.policies".to_owned(),
        message: "Authentication is required to change what messaging apps may do with keys"
            .to_owned(),
    }
}

#[test]
fn a_person_is_asked_and_decides() {
    let scene = Scene::new("");
    let outcome = |act: &str, person: Person| {
        let mut actor = scene.actor(act);
        await_line(&mut actor, "begins");
        let agent = Agent::new(&scene, &actor, person);
        actor.write(b"\n");
        let outcome = await_line(&mut actor, "outcome: ");
        (outcome, agent.told.try_iter().collect::<Vec<_>>())
    };
    let (served, told) = outcome("freeze", Person::Authenticates);
    assert_eq!((served.as_str(), told), ("outcome: served", vec![begins()]));

    let (refused, told) = outcome("freeze", Person::Dismisses);
    assert!(refused.starts_with("outcome: Denied"), "{refused}");
    assert!(refused.contains("the dialog was dismissed"), "{refused}");
    assert_eq!(told, [begins()]);

    // Nobody is asked for a request that must not wait for that.
    let (refused, told) = outcome("freeze-without-a-person", Person::Authenticates);
    assert!(
        refused.starts_with("outcome: InteractionRequired"),
        "{refused}"
    );
    assert_eq!(told, []);

    // On a bus a flag says whether somebody may be asked.
    let (served, told) = outcome("freeze-on-bus", Person::Authenticates);
    assert_eq!((served.as_str(), told), ("outcome: served", vec![begins()]));
    let (refused, told) = outcome("freeze-on-bus-without-a-person", Person::Authenticates);
    assert_eq!(refused, "outcome: org.mlskeyd.Error.InteractionRequired");
    assert_eq!(told, []);
    assert_eq!(
        scene.on_record(),
        [
            "Freeze by polkit/org.mlskeyd.policies",
            "Freeze refused by polkit/org.mlskeyd.policies",
            "Freeze failed: InteractionRequired",
            "Freeze by polkit/org.mlskeyd.policies",
            "Freeze failed: InteractionRequired",
        ]
    );
}

#[test]
fn a_dialog_closes_when_nobody_waits_for_it_any_more() {
    let scene = Scene::new("");
    let mut actor = scene.actor("leave");
    await_line(&mut actor, "begins");
    let agent = Agent::new(&scene, &actor, Person::Waits);
    actor.write(b"\n");
    assert_eq!(agent.told.recv().unwrap(), begins());
    actor.kill();
    assert_eq!(agent.told.recv().unwrap(), Told::Cancel);
    let frozen = scene.daemon.ctl_for_people(&["frozen"]).output().unwrap();
    assert_eq!(frozen.stdout, b"nothing is frozen\n");
    assert_eq!(scene.on_record(), [""; 0]);
}
