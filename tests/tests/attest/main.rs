//! Attestation: a machine with a TPM shows a verifier that its keys are in it, and
//! machines that only pretend do not.

mod accepted;
mod files;
mod forged;
mod hostile;
mod scene;
