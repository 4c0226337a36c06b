//! A TPM 2.0 as a device: on swtpm.

mod bench;
mod conformance;
mod crash;
mod destroyed;
mod life;
mod lost;
mod measured;
mod pcr;
mod setup;
