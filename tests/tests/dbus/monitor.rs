//! Somebody who is shown everything that is on a bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use mlskeyd_tests::rig::Bus;
use tokio::runtime::Runtime;
use zbus::MessageStream;

/// What is to be on the bus: it, and how channels are asked for.
const USUAL: [&str; 10] = [
    "",
    "Hello",
    "AddMatch",
    "RequestName",
    "GetConnectionCredentials",
    "OpenChannel",
    "NameAcquired",
    "NameLost",
    "NameOwnerChanged",
    THE_END,
];

/// What is sent last.
const THE_END: &str = "TheEnd";

#[derive(Debug, Default)]
pub(crate) struct Seen {
    bytes: Vec<u8>,
    members: BTreeMap<String, usize>,
}

pub(crate) struct Monitor {
    seen: Arc<Mutex<Seen>>,
    runtime: Runtime,
}

impl Monitor {
    pub(crate) fn start(bus: &Bus) -> Self {
        let runtime = Runtime::new().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let address = bus.address();
        let mut messages = runtime.block_on(async {
            let bus = zbus::connection::Builder::address(address.as_str());
            let bus = bus.build().await.unwrap();
            let messages = MessageStream::from(&bus);
            let all = (Vec::<&str>::new(), 0_u32);
            let (name, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
            let interface = Some("org.freedesktop.DBus.Monitoring");
            let become_one = bus.call_method(Some(name), path, interface, "BecomeMonitor", &all);
            become_one.await.unwrap();
            messages
        });
        let notes = Arc::clone(&seen);
        runtime.spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let mut seen = notes.lock().unwrap();
                seen.bytes.extend_from_slice(message.data());
                let header = message.header();
                let member = header.member().map(|it| it.to_string()).unwrap_or_default();
                *seen.members.entry(member).or_default() += 1;
            }
        });
        Self { seen, runtime }
    }

    /// What it saw until now: `word` is put on the bus, and whatever was sent before has
    /// been seen when that is.
    pub(crate) fn stop(self, bus: &Bus, word: &str) -> Seen {
        self.runtime.block_on(async {
            let address = bus.address();
            let bus = zbus::connection::Builder::address(address.as_str());
            let bus = bus.build().await.unwrap();
            let (name, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
            let refused = bus.call_method(Some(name), path, Some(name), THE_END, &word);
            refused.await.unwrap_err();
        });
        while self.seen.lock().unwrap().count(THE_END) == 0 {
            std::thread::yield_now();
        }
        self.runtime.shutdown_background();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Seen {
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        self.bytes
            .windows(bytes.len())
            .any(|window| window == bytes)
    }

    pub(crate) fn count(&self, member: &str) -> usize {
        self.members.get(member).copied().unwrap_or_default()
    }

    /// What else there was.
    pub(crate) fn others(&self) -> Vec<String> {
        let others = self
            .members
            .keys()
            .filter(|it| !USUAL.contains(&it.as_str()));
        others.cloned().collect()
    }
}
