//! What another user's process does: this test program once more.

use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use mlskeyd_protocol::client::{AdminClient, Call, CallError, ClientConfig};
use mlskeyd_protocol::v1::{Freeze, FreezeTarget, Interaction};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use zbus::message::Flags;
use zbus::{Message, MessageStream};

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("MLSKEYD_TEST_{name}")).ok()
}

#[test]
#[ignore = "it is what other tests start"]
fn acts() {
    let act = variable("ACT").expect("another test starts this");
    let client = AdminClient::new(ClientConfig::new(variable("SOCKET").unwrap(), "actor"));
    let scratch = PathBuf::from(variable("SCRATCH").unwrap());
    println!("begins");
    match act.as_str() {
        // Waits to be told, and freezes.
        "freeze" | "leave" => {
            wait();
            tell(&freeze(&client, Interaction::UpTo(60_000), 120));
        }
        "freeze-in-two-seconds" => {
            tell(&freeze(&client, Interaction::UpTo(2_000), 120));
        }
        "freeze-without-a-person" => {
            wait();
            tell(&freeze(&client, Interaction::Never, 2));
        }
        // The same by a method of the bus, with the flag that says whether a person may be asked.
        "freeze-on-bus" | "freeze-on-bus-without-a-person" => {
            wait();
            println!("outcome: {}", freeze_on_bus(act == "freeze-on-bus"));
        }
        // Becomes another program while polkit thinks, and keeps the connection.
        "exec" => {
            asks_and_shares(client, &scratch);
            let error = Command::new("/bin/sh").args(["-c", REST]).exec();
            panic!("{error}");
        }
        // Ends while polkit thinks, and its child keeps the connection.
        "end" => {
            asks_and_shares(client, &scratch);
            let child = Command::new("/bin/sh").args(["-c", REST]).spawn();
            drop(child.unwrap());
            std::process::exit(0);
        }
        // Asks five times at once.
        "ask-five-times" => {
            let outcomes = std::thread::scope(|scope| {
                let ask = || freeze(&client, Interaction::Never, 5);
                let asking: Vec<_> = (0..5).map(|_| scope.spawn(ask)).collect();
                let outcomes = asking.into_iter().map(|it| it.join().unwrap());
                outcomes.collect::<Vec<_>>()
            });
            outcomes.iter().for_each(tell);
        }
        other => panic!("{other}"),
    }
}

/// Runs until the test ends.
const REST: &str = "echo rests; exec cat";

/// Asks, and when polkit is asked has the programs that it becomes or starts inherit all of its
/// connections.
fn asks_and_shares(client: AdminClient, scratch: &Path) {
    std::thread::spawn(move || freeze(&client, Interaction::UpTo(60_000), 120));
    while !scratch.join("asked").exists() {
        std::thread::yield_now();
    }
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    for number in 3..64 {
        let target = std::fs::read_link(format!("/proc/self/fd/{number}"));
        if target.is_ok_and(|it| it.to_string_lossy().starts_with("socket:")) {
            let copy = pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).unwrap();
            fcntl_setfd(&copy, FdFlags::empty()).unwrap();
            std::mem::forget(copy);
        }
    }
}

fn freeze(client: &AdminClient, interaction: Interaction, seconds: u64) -> Result<(), CallError> {
    let request = Freeze {
        target: FreezeTarget::User(4_000_000),
        reason: String::new(),
    };
    let call = Call {
        interaction,
        deadline: Duration::from_secs(seconds),
        ..Call::default()
    };
    client.freeze(request, &call).map(|_| ())
}

/// The name of the error, if it is refused.
fn freeze_on_bus(may_ask: bool) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let address = variable("BUS").unwrap();
        let bus = zbus::connection::Builder::address(address.as_str());
        let bus = bus.build().await.unwrap();
        let (name, path) = ("org.mlskeyd.Custody1", "/org/mlskeyd/Custody1");
        let freeze = Message::method_call(path, "Freeze").destination(name);
        let mut freeze = freeze.interface(name);
        if may_ask {
            freeze = freeze.with_flags(Flags::ALLOW_INTERACTIVE_AUTH);
        }
        let mut messages = MessageStream::from(&bus);
        let freeze = freeze.build(&("user 4000000", "")).unwrap();
        let serial = freeze.primary_header().serial_num();
        bus.send(&freeze).await.unwrap();
        loop {
            let answer = messages.next().await.unwrap().unwrap();
            let header = answer.header();
            if header.reply_serial() == Some(serial) {
                let error = header.error_name();
                return error.map_or_else(|| "served".to_owned(), ToString::to_string);
            }
        }
    })
}

/// Waits for a line on standard input.
fn wait() {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
}

fn tell(outcome: &Result<(), CallError>) {
    match outcome {
        Ok(()) => println!("outcome: served"),
        Err(CallError::Failure(failure)) => println!("outcome: {:?}: {failure}", failure.code),
        Err(other) => println!("outcome: {other}"),
    }
}
