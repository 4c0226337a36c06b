//! What is shown to the person on the desktop: that a device waits to be touched, and
//! that something was refused. Once it has lasted half a second, and no longer than it
//! is so (`org.freedesktop.Notifications`, Desktop Notifications Specification 1.2).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use zbus::Variant;

/// What is over sooner is not shown: nobody could read it.
const WORTH_WHILE: Duration = Duration::from_millis(500);

/// How long the desktop may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

const SERVICE: &str = "org.freedesktop.Notifications";
const PATH: &str = "/org/freedesktop/Notifications";

/// Shows notices, on a thread of its own. Without a desktop that shows any they go to
/// standard error.
pub(super) struct Notices(Sender<Order>);

enum Order {
    Show(u64, String),
    Clear(u64),
}

impl Notices {
    /// Begins.
    pub(super) fn begin() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (sender, orders) = mpsc::channel();
        let thread = std::thread::Builder::new().name("notices".to_owned());
        thread.spawn(move || Shown::new(runtime).serve(&orders))?;
        Ok(Self(sender))
    }

    /// Shows it, if it lasts.
    pub(super) fn show(&self, id: u64, text: String) {
        // The thread ends with the process.
        let _ = self.0.send(Order::Show(id, text));
    }

    /// It is over.
    pub(super) fn clear(&self, id: u64) {
        let _ = self.0.send(Order::Clear(id));
    }
}

/// What is on the desktop, and what will be.
struct Shown {
    runtime: tokio::runtime::Runtime,
    /// Made when it is needed first, and again when it broke.
    bus: Option<zbus::Connection>,
    due: BTreeMap<u64, (Instant, String)>,
    shown: BTreeMap<u64, u32>,
}

impl Shown {
    const fn new(runtime: tokio::runtime::Runtime) -> Self {
        Self {
            runtime,
            bus: None,
            due: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    fn serve(mut self, orders: &Receiver<Order>) {
        loop {
            let next = self.due.values().map(|(at, _)| *at).min();
            let order = match next {
                Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(Order::Show(id, text)) => {
                    let now = Instant::now();
                    let at = now.checked_add(WORTH_WHILE).unwrap_or(now);
                    self.due.insert(id, (at, text));
                }
                Ok(Order::Clear(id)) => {
                    self.due.remove(&id);
                    if let Some(notification) = self.shown.remove(&id) {
                        self.close(notification);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.show_due(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn show_due(&mut self) {
        let now = Instant::now();
        let is_due = |(_, (at, _)): &(&u64, &(Instant, String))| *at <= now;
        let due: Vec<u64> = self.due.iter().filter(is_due).map(|(id, _)| *id).collect();
        for id in due {
            let Some((_, text)) = self.due.remove(&id) else {
                continue;
            };
            match self.notify(&text) {
                Ok(notification) => {
                    self.shown.insert(id, notification);
                }
                Err(error) => {
                    self.bus = None;
                    super::say(&text);
                    super::say(&format!("the desktop does not show this: {error}"));
                }
            }
        }
    }

    fn notify(&mut self, text: &str) -> zbus::Result<u32> {
        let body = markup(text);
        let hints: HashMap<&str, Variant<'_>> = HashMap::from([("urgency", Variant::U8(2))]);
        // It is taken back by who shows it.
        let (nothing, forever) = (Vec::<&str>::new(), 0_i32);
        let request = (
            "mlskeyd",
            0_u32,
            "dialog-password",
            "mlskeyd",
            body,
            nothing,
            hints,
            forever,
        );
        let reply = self.call("Notify", &request)?;
        reply.body().deserialize()
    }

    fn close(&mut self, notification: u32) {
        if let Err(error) = self.call("CloseNotification", &notification) {
            self.bus = None;
            super::say(&format!(
                "the desktop shows something that is over: {error}"
            ));
        }
    }

    fn call<Request>(&mut self, method: &str, request: &Request) -> zbus::Result<zbus::Message>
    where
        Request: serde::Serialize + zbus::zvariant::DynamicType,
    {
        let known = self.bus.take();
        let called = self.runtime.block_on(async {
            let asked = async {
                let bus = match known {
                    Some(bus) => bus,
                    None => zbus::Connection::session().await?,
                };
                let to = (Some(SERVICE), PATH, Some(SERVICE));
                let reply = bus.call_method(to.0, to.1, to.2, method, request).await?;
                Ok((bus, reply))
            };
            let asked = tokio::time::timeout(PATIENCE, asked).await;
            asked.unwrap_or_else(|_| Err(zbus::Error::Failure("it does not answer".to_owned())))
        });
        let (bus, reply) = called?;
        self.bus = Some(bus);
        Ok(reply)
    }
}

/// A text that a desktop takes for nothing but text.
fn markup(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_no_markup() {
        assert_eq!(markup("<b>a & b</b>\n"), "&lt;b&gt;a &amp; b&lt;/b&gt; ");
    }
}
