//! The daemon's clients: each with a connection of its own, for the same
//! members.

use std::path::Path;

use mlskeyd_protocol::client::{Call, Client};
use mlskeyd_tests::member::{Member, Seat, client};

use super::block::{Hand, What};
use super::{DEVICE, SOFTWARE, TPM};

/// Who asks, and by whose keys.
pub struct Clients<'a> {
    socket: &'a Path,
    on_token: Seat,
    in_software: Seat,
    in_tpm: Seat,
}

impl<'a> Clients<'a> {
    /// Makes the members' keys.
    pub fn new(socket: &'a Path) -> Self {
        let client = client(socket);
        let seat = |device: &str| Seat::take(&Member::new(&client, device, device), &client);
        Self {
            on_token: seat(DEVICE),
            in_software: seat(SOFTWARE),
            in_tpm: seat(TPM),
            socket,
        }
    }

    /// One more client.
    pub fn hand(&self) -> OneClient<'_> {
        OneClient {
            clients: self,
            client: client(self.socket),
        }
    }
}

/// A client of the daemon.
pub struct OneClient<'a> {
    clients: &'a Clients<'a>,
    client: Client,
}

impl Hand for OneClient<'_> {
    fn work(&mut self, what: What) {
        match what {
            What::Sign => drop(self.clients.on_token.speak(&self.client)),
            What::Open => self.clients.on_token.open(&self.client),
            What::SignInSoftware => drop(self.clients.in_software.speak(&self.client)),
            What::SignInTpm => drop(self.clients.in_tpm.speak(&self.client)),
            What::Status => {
                self.client.status(&Call::default()).expect("status");
            }
        }
    }
}
