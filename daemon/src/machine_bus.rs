//! A bus whose word is believed: of who calls, and of what polkit says.

use zbus::Connection;
use zbus::connection::Builder;

use crate::config::Bus;

/// How a bus is connected. A session's is that of this process.
pub(crate) fn builder(bus: &Bus) -> Builder<'_> {
    match bus {
        Bus::System => Builder::system(),
        Bus::Session => Builder::session(),
        Bus::At(address) => Builder::address(address.as_str()),
    }
}

/// Refuses a bus that another user than root or ours listens as: that user would say who
/// calls, and own whatever name it likes there. The kernel says whose it is.
///
/// # Errors
/// It is another user's, or is not known to be root's or ours.
pub(crate) async fn check_owner(connection: &Connection) -> zbus::Result<()> {
    let owner = connection.peer_creds().await;
    let owner = owner.ok().and_then(|owner| owner.unix_user_id());
    let own = rustix::process::geteuid().as_raw();
    if owner.is_some_and(|owner| owner == 0 || owner == own) {
        return Ok(());
    }
    let whose = owner.map_or_else(
        || "nobody known".to_owned(),
        |owner| format!("user {owner}"),
    );
    Err(zbus::Error::Failure(format!(
        "the bus is that of {whose}, whom mlskeyd would have to believe who calls; name one of the machine's in [dbus]"
    )))
}
