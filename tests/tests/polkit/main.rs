//! Who administers that is neither root nor the daemon's own user: a real polkit says, on a
//! bus of the test's own. They run as root, since only root is several users.

mod absent;
mod actor;
mod answers;
mod dialogs;
mod hangs;
mod scene;
