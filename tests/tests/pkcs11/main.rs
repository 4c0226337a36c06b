//! PKCS#11 tokens as devices, on SoftHSM.

mod conformance;
mod faults;
mod life;
mod matrix;
