//! A YubiKey as a device: virtual ones, in the readers of a real pcscd.

mod attest;
mod bench;
mod conformance;
mod consent;
mod crash;
mod hands;
mod life;
mod others;
mod pins;
mod provision;
mod pulled;
mod reset;
mod scene;
