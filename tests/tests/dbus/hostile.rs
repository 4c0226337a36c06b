//! Clients on the bus that mean ill: they are refused, and nobody else notices.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures::StreamExt;
use mlskeyd_protocol::client::Call;
use mlskeyd_tests::rig::{Bus, Daemon, Options, Stage};
use mlskeyd_tests::vitals::Vitals;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use zbus::message::Flags;
use zbus::{Fd, Message, MessageStream};

use crate::scene::{Guest, NAME, ROOT, STRANGER, Scene, create};

const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";
const LIMITS: &str = "org.freedesktop.DBus.Error.LimitsExceeded";

/// Somebody else is served as ever.
fn assert_others_are_served(scene: &Scene) {
    assert!(
        scene
            .python_prints(STRANGER, &["list"])
            .starts_with("device software")
    );
}

/// Somebody else is served while this goes on and on.
fn assert_nobody_notices(scene: &Scene, mut work: impl FnMut(&Guest) + Send) {
    /// Also where an assertion fails it ends.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let (over, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    let guest = scene.guest();
    let rounds = &rounds;
    std::thread::scope(|scope| {
        let over = Over(&over);
        let is_over = over.0;
        scope.spawn(move || {
            while !is_over.load(Ordering::Acquire) {
                work(&guest);
                rounds.fetch_add(1, Ordering::Release);
            }
        });
        let mut served = 0;
        while served < 3 || rounds.load(Ordering::Acquire) < 2 {
            assert_others_are_served(scene);
            scene.client().status(&Call::default()).unwrap();
            served += 1;
        }
        drop(over);
    });
}

fn open_files(daemon: &Daemon) -> usize {
    Vitals::of(daemon.pid()).descriptors
}

#[test]
fn what_is_too_large_or_of_other_types_is_refused() {
    let scene = Scene::new();
    let guest = scene.guest();
    let large = vec![0_u8; 24 * 1024 * 1024];
    assert_nobody_notices(&scene, |guest| {
        assert_eq!(guest.error(ROOT, NAME, "Freeze", &large.as_slice()), LIMITS);
    });
    let long = "x".repeat(60 * 1024);
    assert_eq!(
        guest.error(ROOT, NAME, "Freeze", &(1_u8, long.as_str())),
        INVALID
    );
    assert_eq!(
        guest.error(ROOT, NAME, "Freeze", &(long.as_str(), "")),
        INVALID
    );
    assert_eq!(
        guest.error(ROOT, NAME, "Freeze", &("all", long.as_str())),
        "org.mlskeyd.Error.BadRequest"
    );
    let path = format!("{ROOT}/devices/{}", "a".repeat(60 * 1024));
    let unknown = "org.freedesktop.DBus.Error.UnknownObject";
    assert_eq!(guest.error(&path, NAME, "OpenChannel", &()), unknown);
    let deep = vec![vec![vec![vec![vec![("a", 1_u8)]]]]];
    assert_eq!(guest.error(ROOT, NAME, "OpenChannel", &deep), INVALID);
    assert_others_are_served(&scene);
    let resident = Vitals::of(scene.daemon.pid()).memory;
    assert!(resident < 192 * 1024 * 1024, "{resident} bytes");
}

#[test]
fn a_thousand_calls_at_once_are_answered_or_refused() {
    let scene = Scene::new();
    create(&scene.client(), "alice");
    let guest = scene.guest();
    let call = |member: &str| {
        let call = Message::method_call(ROOT, member).destination(NAME);
        call.interface("org.freedesktop.DBus.ObjectManager")
            .build(&())
            .unwrap()
    };
    let own = guest.bus.unique_name().unwrap().to_string();
    let calls: Vec<_> = (0..1000).map(|_| call("GetManagedObjects")).collect();
    let (mut served, mut refused) = (0, 0);
    let answers = guest.exchange(&calls);
    assert_others_are_served(&scene);
    for answer in answers {
        match answer {
            Ok(()) => served += 1,
            Err(name) if name == LIMITS => refused += 1,
            Err(name) => panic!("{name} to {own}"),
        }
    }
    assert_eq!(served + refused, 1000);
    println!("{served} served, {refused} refused");
    assert!(served >= 32 && refused > 0, "{served} were served");
    // It has its turns again.
    guest.objects();
    assert_nobody_notices(&scene, |guest| {
        let calls: Vec<_> = (0..1000).map(|_| call("GetManagedObjects")).collect();
        guest.exchange(&calls);
    });
}

#[test]
fn who_leaves_in_the_middle_is_forgotten() {
    let scene = Scene::new();
    let before = open_files(&scene.daemon);
    for round in 0..100 {
        let guest = scene.guest();
        let call = Message::method_call(ROOT, "OpenChannel").destination(NAME);
        let flags = if round % 2 == 0 {
            Flags::NO_REPLY_EXPECTED
        } else {
            Flags::NO_AUTO_START
        };
        let call = call.interface(NAME).with_flags(flags).build(&()).unwrap();
        guest.send(&call);
    }
    assert_others_are_served(&scene);
    // Those that were given a channel have gone as well.
    while open_files(&scene.daemon) > before + 2 {
        std::thread::yield_now();
    }
}

fn memory(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let mut file = File::from(memfd_create("hostile", flags).unwrap());
    file.write_all(bytes).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

#[test]
fn what_is_not_sealed_is_not_read() {
    let scene = Scene::new();
    create(&scene.client(), "alice");
    let guest = scene.guest();
    let own = rustix::process::geteuid().as_raw().to_string();
    let digits: String = own[1..].to_owned();
    let path = format!("{ROOT}/identities/_3{}{digits}/default/alice", &own[..1]);
    let interface = "org.mlskeyd.Custody1.Identity";
    let update = |fd: &OwnedFd| {
        let update = guest.call(
            &path,
            interface,
            "UpdateCertificates",
            &Fd::from(fd.as_fd()),
        );
        update.map(|_| ()).unwrap_err()
    };
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
    guest.objects();
    let before = open_files(&scene.daemon);
    let (pipe, _writer) = std::io::pipe().unwrap();
    for open in [
        memory(b"x", SealFlags::empty()),
        memory(b"x", SealFlags::WRITE),
        memory(b"x", SealFlags::GROW | SealFlags::SHRINK),
        File::open("/proc/self/mem").unwrap().into(),
        File::open("/dev/zero").unwrap().into(),
        pipe.into(),
    ] {
        let (name, text) = update(&open);
        assert_eq!(name, INVALID);
        assert!(text.contains("seal it with F_SEAL_WRITE"), "{text}");
    }
    let (name, text) = update(&memory(b"no certificate", all));
    assert_eq!(name, INVALID);
    assert!(text.contains("no certificate in it"), "{text}");
    let (name, text) = update(&memory(&vec![0; 1 << 20], all));
    assert_eq!(name, INVALID);
    assert!(text.contains("longer than"), "{text}");
    // Descriptors that nobody asked for are closed.
    let sealed = memory(b"x", all);
    let many: Vec<_> = (0..16).map(|_| Fd::from(sealed.as_fd())).collect();
    for _ in 0..50 {
        assert_eq!(guest.error(ROOT, NAME, "OpenChannel", &many), INVALID);
    }
    // The last one's may not be closed yet.
    while open_files(&scene.daemon) > before {
        std::thread::yield_now();
    }
    assert_others_are_served(&scene);
}

/// Who has the name already keeps it, until it goes.
#[test]
fn two_daemons_do_not_share_a_name() {
    let scene = Scene::new();
    let another = Stage::new(mlskeyd_tests::programs!());
    let options = Options {
        extra: scene.bus.section(),
        ..Options::default()
    };
    let mut second = Daemon::start(&another, &options);
    assert!(
        second.log().contains("cannot be on the bus"),
        "{}",
        second.log()
    );
    create(&mlskeyd_tests::member::client(&second.socket()), "bob");
    let guest = scene.guest();
    assert_eq!(guest.objects().len(), 1, "the first one's device alone");
    let mut scene = scene;
    scene.daemon.stop();
    let device = format!("{ROOT}/devices/software");
    guest.await_object(&device);
    assert_eq!(guest.objects().len(), 3, "the second one's");
    second.stop();
}

/// The bus is not there at first, goes, and comes: the socket does not mind.
#[test]
fn a_bus_that_comes_and_goes_takes_nothing_along() {
    let mut scene = Scene::new();
    let client = scene.client();
    create(&client, "alice");
    scene.bus.kill();
    create(&client, "bob");
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    create(&scene.client(), "carol");
    scene.bus.restart();
    let guest = await_daemon(&scene.bus);
    assert_eq!(guest.objects().len(), 1 + 2 * 3);
}

fn await_daemon(bus: &Bus) -> Guest {
    let guest = Guest::new(&bus.address());
    guest.await_object(ROOT);
    guest
}

/// A session's bus is its user's, who could have it say that somebody is anybody.
#[test]
fn on_a_sessions_bus_nobody_but_its_user_is_served() {
    let mut scene = Scene::new();
    scene.daemon.stop();
    scene.options = Options {
        extra: "[dbus]\nbus = \"session\"\n".to_owned(),
        session_bus: Some(scene.bus.address()),
        ..Options::default()
    };
    scene.daemon.restart(&scene.options);
    assert_eq!(scene.guest().objects().len(), 1);
    let refused = scene.python_fails(STRANGER, &["list"]);
    assert!(
        refused.starts_with("org.mlskeyd.Error.NotServed"),
        "{refused}"
    );
    let refused = scene.python_fails(STRANGER, &["key-package", "mallory"]);
    assert!(
        refused.starts_with("org.mlskeyd.Error.NotServed"),
        "{refused}"
    );
}

/// Whoever comes to the bus can be sent signals before it has a name. They would fill what it
/// reads, so that it never hears that it has the name.
#[test]
fn signals_to_who_has_no_name_yet_do_not_hang_the_door() {
    let mut scene = Scene::new();
    let address = scene.bus.address();
    let (over, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| flood_newcomers(&address, &over, &sent));
        for _ in 0..10 {
            scene.daemon.stop();
            scene.daemon.restart(&scene.options);
            scene.guest().await_object(ROOT);
        }
        over.store(true, Ordering::Release);
        // It sees one more, and ends.
        drop(scene.guest());
    });
    assert!(sent.load(Ordering::Acquire) > 1000);
}

fn flood_newcomers(address: &str, over: &AtomicBool, sent: &AtomicU32) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let bus = zbus::connection::Builder::address(address);
        let bus = bus.build().await.unwrap();
        let mut messages = MessageStream::from(&bus);
        let rule = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged'";
        let (name, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        let watch = bus.call_method(Some(name), path, Some(name), "AddMatch", &rule);
        watch.await.unwrap();
        while !over.load(Ordering::Acquire) {
            let message = messages.next().await.unwrap().unwrap();
            let changed = message.body().deserialize::<(String, String, String)>();
            let Ok((name, _, owner)) = changed else {
                continue;
            };
            if !name.starts_with(':') || owner.is_empty() {
                continue;
            }
            let signals = (0..64).map(|_| {
                let signal = Message::signal("/flood", "org.example.Flood", "Flood");
                signal.destination(name.as_str()).build(&()).unwrap()
            });
            bus.send_all(&signals.collect::<Vec<_>>()).await.unwrap();
            sent.fetch_add(64, Ordering::Release);
        }
    });
}
