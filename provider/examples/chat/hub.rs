//! The delivery service (RFC 9750): a directory of KeyPackages, one ordered
//! queue for each client, and one order of commits for each group. It cannot
//! read what it passes on.
//!
//! It speaks lines of JSON on a Unix socket, a question and an answer each.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::commands::{Readable, Result};

/// What goes to the hub in one piece: it takes all of it or nothing. Bytes are
/// in hexadecimal.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Submission {
    /// Random: the same submission is taken once, however often it is sent.
    pub(crate) id: String,
    /// The group's name.
    pub(crate) group: String,
    /// The epoch that it ends, for a commit: the first one of an epoch wins.
    pub(crate) ends_epoch: Option<u64>,
    /// The sender joins the group by it.
    pub(crate) external: bool,
    /// A message for these clients.
    pub(crate) message: Option<(Vec<String>, String)>,
    /// A Welcome for these clients.
    pub(crate) welcome: Option<(Vec<String>, String)>,
    /// The group's new GroupInfo, for those who join by themselves.
    pub(crate) group_info: Option<String>,
}

/// A message in a client's queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Delivery {
    /// Its number; later ones have higher numbers.
    pub(crate) sequence: u64,
    /// The group's name.
    pub(crate) group: String,
    /// An MLSMessage (RFC 9420, 6) in hexadecimal.
    pub(crate) message: String,
}

#[derive(Serialize, Deserialize)]
enum Question {
    Publish { name: String, key_package: String },
    KeyPackage { name: String },
    Submit(Submission),
    Fetch { name: String, after: u64 },
    GroupInfo { group: String },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Done,
    /// Another commit was first in this epoch.
    Conflict,
    Bytes(Option<String>),
    Deliveries(Vec<Delivery>),
}

/// Serves for ever; prints `ready` once it does.
pub(crate) fn serve(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).readable()?;
    println!("ready");
    std::io::stdout().flush().readable()?;
    let hub = Arc::new(Mutex::new(Hub::default()));
    for stream in listener.incoming() {
        let (stream, hub) = (stream.readable()?, Arc::clone(&hub));
        std::thread::spawn(move || {
            if let Err(error) = answer_all(&stream, &hub) {
                eprintln!("hub: a connection ended: {error}");
            }
        });
    }
    Ok(())
}

fn answer_all(stream: &UnixStream, hub: &Mutex<Hub>) -> Result<()> {
    for line in BufReader::new(stream).lines() {
        let question = serde_json::from_str(&line.readable()?).readable()?;
        let answer = hub
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answer(question);
        send_line(stream, &answer)?;
    }
    Ok(())
}

fn send_line(mut stream: &UnixStream, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(value).readable()?;
    line.push('\n');
    stream.write_all(line.as_bytes()).readable()
}

#[derive(Default)]
struct Hub {
    sequence: u64,
    key_packages: HashMap<String, VecDeque<String>>,
    queues: HashMap<String, VecDeque<Delivery>>,
    groups: HashMap<String, Group>,
    taken: HashSet<String>,
}

#[derive(Default)]
struct Group {
    /// The last epoch that a commit has ended.
    ended: Option<u64>,
    info: Option<String>,
}

impl Hub {
    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Publish { name, key_package } => {
                self.key_packages
                    .entry(name)
                    .or_default()
                    .push_back(key_package);
                Answer::Done
            }
            Question::KeyPackage { name } => {
                Answer::Bytes(self.key_packages.entry(name).or_default().pop_front())
            }
            Question::Submit(submission) => self.take(submission),
            Question::Fetch { name, after } => {
                let queue = self.queues.entry(name).or_default();
                queue.retain(|delivery| delivery.sequence > after);
                Answer::Deliveries(queue.iter().cloned().collect())
            }
            Question::GroupInfo { group } => {
                Answer::Bytes(self.groups.get(&group).and_then(|group| group.info.clone()))
            }
        }
    }

    fn take(&mut self, submission: Submission) -> Answer {
        if self.taken.contains(&submission.id) {
            return Answer::Done;
        }
        let group = self.groups.entry(submission.group.clone()).or_default();
        if let Some(epoch) = submission.ends_epoch {
            if group.ended.is_some_and(|ended| epoch <= ended) {
                return Answer::Conflict;
            }
            group.ended = Some(epoch);
        }
        if submission.group_info.is_some() {
            group.info = submission.group_info;
        }
        self.taken.insert(submission.id);
        for (to, message) in submission.message.into_iter().chain(submission.welcome) {
            for name in to {
                self.sequence = self.sequence.saturating_add(1);
                self.queues.entry(name).or_default().push_back(Delivery {
                    sequence: self.sequence,
                    group: submission.group.clone(),
                    message: message.clone(),
                });
            }
        }
        Answer::Done
    }
}

/// A participant's way to the hub: a connection for each question.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Puts a KeyPackage into the directory.
    pub(crate) fn publish(&self, name: &str, key_package: String) -> Result<()> {
        match self.ask(&Question::Publish {
            name: name.to_owned(),
            key_package,
        })? {
            Answer::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Takes a KeyPackage out of the directory.
    pub(crate) fn key_package(&self, name: &str) -> Result<String> {
        match self.ask(&Question::KeyPackage {
            name: name.to_owned(),
        })? {
            Answer::Bytes(Some(bytes)) => Ok(bytes),
            Answer::Bytes(None) => Err(format!("{name} has no key package at the hub")),
            _ => Err(unexpected()),
        }
    }

    /// Submits something; `false` if another commit was first.
    pub(crate) fn submit(&self, submission: Submission) -> Result<bool> {
        match self.ask(&Question::Submit(submission))? {
            Answer::Done => Ok(true),
            Answer::Conflict => Ok(false),
            _ => Err(unexpected()),
        }
    }

    /// What came for `name` after the message with this number.
    pub(crate) fn fetch(&self, name: &str, after: u64) -> Result<Vec<Delivery>> {
        match self.ask(&Question::Fetch {
            name: name.to_owned(),
            after,
        })? {
            Answer::Deliveries(deliveries) => Ok(deliveries),
            _ => Err(unexpected()),
        }
    }

    /// A group's GroupInfo.
    pub(crate) fn group_info(&self, group: &str) -> Result<String> {
        match self.ask(&Question::GroupInfo {
            group: group.to_owned(),
        })? {
            Answer::Bytes(Some(bytes)) => Ok(bytes),
            Answer::Bytes(None) => Err(format!("the hub knows no group {group}")),
            _ => Err(unexpected()),
        }
    }

    fn ask(&self, question: &Question) -> Result<Answer> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(|error| format!("no hub at {}: {error}", self.socket.display()))?;
        send_line(&stream, question)?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).readable()?;
        serde_json::from_str(&line).readable()
    }
}

fn unexpected() -> String {
    "the hub answered something else".to_owned()
}
