//! What apps have in custody gets another owner, and their chats go on.

#![allow(clippy::panic, clippy::unwrap_used)]

mod crash;
mod reassigned;
mod scene;
mod taken_over;
