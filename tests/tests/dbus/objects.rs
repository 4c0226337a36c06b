//! What is to be seen on the bus, by whom, and what is told.

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{GenerateHpke, Kem, Placement, SecretBytes, Sign};

use crate::scene::{NAME, OBJECT_MANAGER, PROPERTIES, ROOT, STRANGER, Scene, create, member};

const DEVICE: &str = "org.mlskeyd.Custody1.Device";
const IDENTITY: &str = "org.mlskeyd.Custody1.Identity";
const KEY: &str = "org.mlskeyd.Custody1.Key";

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn each_user_sees_the_devices_and_what_is_its_own() {
    let scene = Scene::new();
    let alice = create(&scene.client(), "alice");
    let guest = scene.guest();
    let objects = guest.objects();
    let interfaces = |kind: &str| {
        let of_kind = objects.iter().filter(|(_, has)| has.contains_key(kind));
        of_kind
            .map(|(path, _)| path.to_string())
            .collect::<Vec<_>>()
    };
    let device = format!("{ROOT}/devices/software");
    assert_eq!(interfaces(DEVICE), [device.as_str()]);
    let [identity] = interfaces(IDENTITY).try_into().unwrap();
    let [key] = interfaces(KEY).try_into().unwrap();
    assert_eq!(
        String::try_from(guest.get(&device, DEVICE, "State")).unwrap(),
        "ready"
    );
    assert_eq!(
        String::try_from(guest.get(&identity, IDENTITY, "Name")).unwrap(),
        "alice"
    );
    assert_eq!(
        String::try_from(guest.get(&key, KEY, "Id")).unwrap(),
        alice.key.to_string()
    );
    // An empty name of an interface means any.
    assert_eq!(
        String::try_from(guest.get(&key, "", "Tier")).unwrap(),
        "software"
    );
    assert_eq!(
        String::try_from(guest.get(ROOT, NAME, "Version")).unwrap(),
        env!("CARGO_PKG_VERSION")
    );
    drop(objects);

    // Somebody else sees the device alone, also where it knows the paths.
    let list = scene.python_prints(STRANGER, &["list"]);
    assert_eq!(list, "device software: software, ready\n");
    for path in [&identity, &key] {
        let error = scene.python_fails(STRANGER, &["get", path]);
        assert!(
            error.starts_with("org.freedesktop.DBus.Error.UnknownObject")
                || error.starts_with("org.mlskeyd.Error.NotFound"),
            "{error}"
        );
        assert!(scene.python_prints(own(), &["get", path]).contains("Owner"));
    }
}

#[test]
fn everything_that_is_described_is_answered() {
    let scene = Scene::new();
    create(&scene.client(), "alice");
    let guest = scene.guest();
    let mut paths: Vec<_> = guest
        .objects()
        .into_keys()
        .map(|path| path.to_string())
        .collect();
    paths.extend(["/", "/org", "/org/mlskeyd", ROOT].map(str::to_owned));
    paths.extend(["devices", "identities", "keys"].map(|all| format!("{ROOT}/{all}")));
    for path in &paths {
        let introspectable = "org.freedesktop.DBus.Introspectable";
        let xml = guest.call(path, introspectable, "Introspect", &()).unwrap();
        let xml: String = xml.body().deserialize().unwrap();
        let mut interface = "";
        for element in xml.split('<').map(str::trim) {
            let name = element.split('"').nth(1).unwrap_or_default();
            if element.starts_with("interface ") {
                interface = name;
            } else if element.starts_with("property ") {
                guest.get(path, interface, name);
            } else if element.starts_with("method ") {
                // With arguments that no method has, so that it does nothing.
                let error = guest.error(path, interface, name, &(1_u8, 2_u8));
                let wanted = match name {
                    "Set" => "org.freedesktop.DBus.Error.PropertyReadOnly",
                    _ => "org.freedesktop.DBus.Error.InvalidArgs",
                };
                assert_eq!(error, wanted, "{path} {interface} {name}");
            }
        }
        // What is below is found from there.
        for child in xml.split("<node name=\"").skip(1) {
            let child = child.split('"').next().unwrap();
            let below = format!("{}/{child}", path.trim_end_matches('/'));
            guest
                .call(&below, introspectable, "Introspect", &())
                .unwrap();
        }
    }
}

#[test]
fn what_is_not_there_is_said_by_name() {
    let scene = Scene::new();
    let guest = scene.guest();
    let unknown = |what: &str| format!("org.freedesktop.DBus.Error.Unknown{what}");
    let nobody = format!("{ROOT}/devices/nobody");
    for (path, interface, method, wanted) in [
        ("/org/other", NAME, "OpenChannel", "Object"),
        (&format!("{ROOT}/nothing"), NAME, "OpenChannel", "Object"),
        (ROOT, NAME, "Nothing", "Method"),
        (ROOT, "org.mlskeyd.Nothing", "OpenChannel", "Method"),
        (&nobody, NAME, "OpenChannel", "Method"),
    ] {
        assert_eq!(
            guest.error(path, interface, method, &()),
            unknown(wanted),
            "{path} {method}"
        );
    }
    let get = |path: &str, names: (&str, &str)| guest.error(path, PROPERTIES, "Get", &names);
    assert_eq!(get(ROOT, (NAME, "Nothing")), unknown("Property"));
    assert_eq!(
        get(ROOT, ("org.mlskeyd.Nothing", "Version")),
        unknown("Interface")
    );
    assert_eq!(get(&nobody, (DEVICE, "Name")), unknown("Object"));
    let all = |interface: &str| guest.call(ROOT, PROPERTIES, "GetAll", &interface);
    assert!(all(OBJECT_MANAGER).is_ok());
    assert_eq!(
        all("org.mlskeyd.Nothing").unwrap_err().0,
        unknown("Interface")
    );
    guest
        .call(ROOT, "org.freedesktop.DBus.Peer", "Ping", &())
        .unwrap();

    let lock = guest.call(&nobody, DEVICE, "Lock", &()).unwrap_err();
    assert_eq!(lock.0, "org.mlskeyd.Error.DeviceAbsent");
    assert!(
        lock.1.contains("no device named nobody is configured"),
        "{}",
        lock.1
    );
}

#[test]
fn what_happens_is_told_to_whose_it_is() {
    let scene = Scene::new();
    let client = scene.client();
    let mut guest = scene.guest();
    // Whoever lists objects is told of them; and who only says so.
    guest.objects();
    let mut other = scene.guest();
    other.call(ROOT, NAME, "Subscribe", &()).unwrap();
    let mut stranger = scene.start_python(STRANGER, &["follow", "1"]);
    stranger.expect_line("following");

    let alice = create(&client, "alice");
    let added = guest.signals(&["InterfacesAdded", "InterfacesAdded"]);
    for (signal, interface) in added.iter().zip([KEY, IDENTITY]) {
        let text = format!(
            "{:?}",
            signal.body().deserialize::<zbus::Structure<'_>>().unwrap()
        );
        assert!(text.contains(interface), "{text}");
    }
    let hpke = GenerateHpke {
        kem: Kem::DhKemX25519,
        placement: Placement::default(),
    };
    client.generate_hpke(hpke, &Call::default()).unwrap();
    guest.signals(&["InterfacesAdded"]);

    let owner = format!("{}/default", own());
    scene
        .daemon
        .ctl(&["identities", "rotate", &owner, "alice"])
        .unwrap();
    let changed = guest.signals(&["InterfacesAdded", "PropertiesChanged"]);
    let path = changed[1].header().path().unwrap().to_string();
    assert!(path.ends_with("/alice"), "{path}");
    assert!(
        format!(
            "{:?}",
            changed[1].body().deserialize::<zbus::Structure<'_>>()
        )
        .contains("Retiring")
    );

    let sign = Sign {
        key: alice.key,
        content: SecretBytes::new(b"no structure of MLS".to_vec()),
    };
    client.sign(sign, &Call::default()).unwrap_err();
    let refused = guest.signals(&["Refused"]).remove(0);
    let (app, action, policy, reason): (String, String, String, String) =
        refused.body().deserialize().unwrap();
    assert_eq!((app.as_str(), action.as_str()), ("default", "SignUnknown"));
    assert_eq!(policy, "builtin/unknown-structure");
    assert!(reason.contains("no MLS structure"), "{reason}");

    // The first that the stranger hears is of no owner.
    scene.daemon.ctl(&["policy", "reload"]).unwrap();
    guest.signals(&["PoliciesReloaded"]);
    let line = stranger.line().unwrap();
    assert!(line.starts_with("PoliciesReloaded "), "{line}");

    let told: Vec<_> = (0..6).map(|_| member(&other.signal())).collect();
    assert_eq!(told.last().map(String::as_str), Some("Refused"));
    other.call(ROOT, NAME, "Unsubscribe", &()).unwrap();
}

#[test]
fn a_key_that_ends_is_told() {
    let scene = Scene::with("[lifetimes]\ngrace = \"0s\"\norphan_grace = \"0s\"\n");
    let mut guest = scene.guest();
    guest.objects();
    let hpke = GenerateHpke {
        kem: Kem::DhKemX25519,
        placement: Placement::default(),
    };
    let client = scene.client();
    let made = client.generate_hpke(hpke, &Call::default()).unwrap();
    // Nobody has claimed it: it ends with the connection, at once or at the sweep.
    drop(client);
    guest.signals(&["InterfacesAdded"]);
    scene.daemon.ctl(&["keys", "sweep"]).unwrap();
    let removed = guest.signals(&["InterfacesRemoved"]).remove(0);
    let (path, interfaces): (zbus::OwnedObjectPath, Vec<String>) =
        removed.body().deserialize().unwrap();
    assert!(path.ends_with(&made.key.to_string()[1..]), "{path}");
    assert_eq!(interfaces, [KEY]);
    assert_eq!(
        guest.error(&path, PROPERTIES, "GetAll", &KEY),
        "org.mlskeyd.Error.NotFound"
    );
}

#[test]
fn administrators_do_it_here_too_and_others_do_not() {
    let scene = Scene::new();
    let guest = scene.guest();
    let reloaded = guest.call(ROOT, NAME, "ReloadPolicies", &()).unwrap();
    let (count, _): (u32, Vec<String>) = reloaded.body().deserialize().unwrap();
    assert!(count > 0);
    let freeze = ("user 4711", "gone");
    guest.call(ROOT, NAME, "Freeze", &freeze).unwrap();
    let frozen = || scene.daemon.ctl(&["frozen"]).unwrap().to_string();
    assert!(frozen().contains("gone"), "{}", frozen());
    guest.call(ROOT, NAME, "Thaw", &"user 4711").unwrap();
    assert!(!frozen().contains("gone"), "{}", frozen());
    let wrong = guest.error(ROOT, NAME, "Freeze", &("everybody", ""));
    assert_eq!(wrong, "org.freedesktop.DBus.Error.InvalidArgs");
    let refused = scene.python_fails(STRANGER, &["freeze", "all"]);
    assert!(
        refused.starts_with("org.mlskeyd.Error.Denied: "),
        "{refused}"
    );
}

#[test]
fn the_doctor_looks_whether_the_daemon_is_on_the_bus() {
    let mut scene = Scene::new();
    let config = scene.stage.path("daemon/mlskeyd.toml");
    let config = config.to_str().unwrap().to_owned();
    let bus = |scene: &Scene| {
        let mut doctor = scene.daemon.ctl_command(&["doctor", "--config", &config]);
        let found = doctor.output().unwrap().stdout;
        let found: serde_json::Value = serde_json::from_slice(&found).unwrap();
        let mut found = found["findings"].as_array().unwrap().iter();
        let bus = found.find(|finding| finding["check"] == "bus").unwrap();
        bus["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(bus(&scene), "ok");
    scene.daemon.stop();
    assert_eq!(bus(&scene), "fail");
}
