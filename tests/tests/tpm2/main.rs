//! A TPM 2.0 as a device: on swtpm.

mod bench;
mod bystander;
mod conformance;
mod crash;
mod daemon;
mod destroyed;
mod fairness;
mod killed;
mod life;
mod lockout;
mod lost;
mod many;
mod measured;
mod pcr;
mod people;
mod pin;
mod setup;
mod sniffer;
