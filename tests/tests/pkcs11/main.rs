//! PKCS#11 tokens as devices: on SoftHSM, and with `full` on modules of others.

mod bench;
mod bulk;
mod conformance;
mod descriptors;
mod faults;
#[cfg(feature = "full")]
mod foreign;
mod life;
mod logins;
mod lost;
mod matrix;
mod modes;
mod offers;
mod own_token;
mod people;
mod scene;
mod soak;
mod stop;
