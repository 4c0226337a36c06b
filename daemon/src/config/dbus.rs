//! `[dbus]`: the bus on which the daemon is, too.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// Longest address of a bus, in bytes.
const MAX_ADDRESS: usize = 4096;

/// A message bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bus {
    /// The machine's: as `DBUS_SYSTEM_BUS_ADDRESS` says, else the usual one.
    System,
    /// That of the user's session: as `DBUS_SESSION_BUS_ADDRESS` says.
    Session,
    /// The machine's, at this address (D-Bus Specification, Server Addresses).
    At(String),
}

/// The table.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DbusTable {
    #[serde(deserialize_with = "bus")]
    pub(super) bus: Option<Bus>,
}

fn bus<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Bus>, D::Error> {
    let said = String::deserialize(from)?;
    match said.as_str() {
        "none" => Ok(None),
        "system" => Ok(Some(Bus::System)),
        "session" => Ok(Some(Bus::Session)),
        address if address.starts_with("unix:") && address.len() <= MAX_ADDRESS => {
            Ok(Some(Bus::At(said)))
        }
        _ => Err(D::Error::custom(
            "a bus is \"system\", \"session\", \"none\", or an address as in \"unix:path=/run/dbus/system_bus_socket\"",
        )),
    }
}
