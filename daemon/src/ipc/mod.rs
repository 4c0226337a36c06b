//! The doors. Behind each of them is the one path in
//! [`custody`](crate::custody).

mod bus;
mod crowd;
mod identify;
mod rpc;
mod services;
mod socket;

pub use crowd::Bounds;
pub use rpc::{Doors, serve};
pub use socket::{Socket, SocketError};
