//! A TPM 2.0 as a device: on swtpm.

mod bench;
mod conformance;
mod crash;
mod daemon;
mod destroyed;
mod life;
mod lost;
mod setup;
