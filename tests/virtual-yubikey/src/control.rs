//! What the program is told, one line of JSON each, and what it answers.

use serde::{Deserialize, Serialize};

/// What it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// A new card of this firmware, which is in no reader yet. Cards are numbered from 0.
    Make {
        /// Its serial number.
        serial: u32,
        /// Its firmware.
        version: [u8; 3],
    },
    /// Puts a card into a reader.
    Insert {
        /// The card.
        card: usize,
        /// The reader.
        reader: usize,
    },
    /// Pulls the card out of a reader.
    Remove {
        /// The reader.
        reader: usize,
    },
    /// Something happens to the card at a command to come.
    HappensAt {
        /// The reader.
        reader: usize,
        /// How many commands are done before.
        after: u32,
        /// What.
        mishap: Mishap,
    },
    /// What a finger does.
    Finger {
        /// The card.
        card: usize,
        /// What.
        finger: FingerOrder,
    },
    /// The certificate that a card's attestation leads to.
    Root {
        /// The card.
        card: usize,
    },
    /// What is in a card that is not secret.
    Snapshot {
        /// The card.
        card: usize,
    },
    /// The tries that its PIN has left.
    Tries {
        /// The card.
        card: usize,
    },
    /// Puts data into an object, as who personalises cards does: in hexadecimal.
    Put {
        /// The card.
        card: usize,
        /// The object's name.
        object: String,
        /// Its data.
        data: String,
    },
    /// Has a slot have another key of the same kind, as if somebody had made it there.
    Remake {
        /// The card.
        card: usize,
        /// The slot.
        slot: u8,
    },
    /// Has a card take the factory's management key as one of 3DES, as if somebody had set
    /// it so.
    Old3Des {
        /// The card.
        card: usize,
    },
    /// Is there a card in a reader?
    IsIn {
        /// The reader.
        reader: usize,
    },
    /// Another program has a card for itself, from now on.
    Hold {
        /// The reader.
        reader: usize,
    },
    /// It lets go of it.
    LetGo,
    /// Lets time pass for a card, in seconds: what it remembers of a touch is old then.
    Wait {
        /// The card.
        card: usize,
        /// So long.
        seconds: u32,
    },
    /// Another program sends commands, in hexadecimal, and leaves the card as it is then;
    /// what the card answers.
    Disturb {
        /// The reader.
        reader: usize,
        /// The commands.
        commands: Vec<String>,
    },
    /// The instructions of the commands that reached it since it was asked last.
    Seen {
        /// The card.
        card: usize,
    },
    /// Ends pcscd at once, and starts it again; cards stay in their readers.
    RestartPcscd,
}

/// What happens to a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mishap {
    /// It is pulled out, before it does the command.
    Pulled,
    /// It is pulled out once it has done the command, and its answer is lost.
    PulledWhenDone,
    /// It loses its power for a moment before the command, which nobody is told.
    Reset,
}

/// What a finger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FingerOrder {
    /// It touches at once, from now on.
    Now,
    /// It waits until it is told [`Now`](Self::Now); who waits already is touched then.
    Waits,
    /// It never comes: the card gives up at once.
    Never,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// It is done.
    Done,
    /// Objects and slots, in hexadecimal.
    Snapshot(Vec<(String, String)>),
    /// Tries that are left.
    Tries(u8),
    /// Answers of a card, in hexadecimal.
    Answers(Vec<String>),
    /// A certificate in PEM.
    Root(String),
    /// Is there?
    IsIn(bool),
    /// INS, P1 and P2 of each command.
    Seen(Vec<[u8; 3]>),
}
