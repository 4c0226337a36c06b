//! How a fresh HPKE key is told from a derived one.
//!
//! OpenMLS makes an init or a leaf key by drawing random bytes and feeding
//! them into `derive_hpke_keypair` at once, on the same thread. All other keys
//! are derived from the output of a KDF. So the last random output of each
//! thread is remembered, and a derivation from that very value is a key to be
//! made in custody. The memory is per thread, not per provider: `rand()` and
//! `crypto()` may be different objects.

use std::cell::{Cell, RefCell};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// MLS draws as many bytes as the suite's hash has: 32 to 64. What is shorter
/// is a nonce or a key id, and must not push out what is remembered.
const LENGTHS: std::ops::RangeInclusive<usize> = 32..=64;

thread_local! {
    static LAST: RefCell<Option<Zeroizing<Vec<u8>>>> = const { RefCell::new(None) };
    static SUSPENDED: Cell<bool> = const { Cell::new(false) };
}

/// Remembers `random` as this thread's last random output.
pub(crate) fn remember(random: &[u8]) {
    if LENGTHS.contains(&random.len()) && !SUSPENDED.get() {
        LAST.set(Some(Zeroizing::new(random.to_vec())));
    }
}

/// Is `ikm` this thread's last random output? Whatever the answer, that output
/// is forgotten.
pub(crate) fn is_fresh(ikm: &[u8]) -> bool {
    LAST.take()
        .is_some_and(|last| bool::from(last.as_slice().ct_eq(ikm)))
}

/// While this lives, this thread's fresh keys are made in software: an app that
/// leaves custody needs a leaf key of its own.
pub(crate) struct SoftwareKeys {
    before: bool,
}

impl SoftwareKeys {
    pub(crate) fn begin() -> Self {
        LAST.set(None);
        Self {
            before: SUSPENDED.replace(true),
        }
    }
}

impl Drop for SoftwareKeys {
    fn drop(&mut self) {
        SUSPENDED.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_output_is_fresh_once() {
        remember(&[1; 32]);
        remember(&[2; 32]);
        assert!(is_fresh(&[2; 32]));
        assert!(!is_fresh(&[2; 32]));
    }

    #[test]
    fn another_value_is_not_fresh_and_spends_the_memory() {
        remember(&[1; 32]);
        assert!(!is_fresh(&[1; 33]));
        assert!(!is_fresh(&[1; 32]));
        remember(&[1; 64]);
        assert!(!is_fresh(&[2; 64]));
        assert!(!is_fresh(&[]));
    }

    #[test]
    fn short_and_long_outputs_are_not_remembered_and_push_nothing_out() {
        remember(&[1; 32]);
        remember(&[2; 31]);
        remember(&[3; 65]);
        assert!(is_fresh(&[1; 32]));
    }

    #[test]
    fn each_thread_has_its_own_memory() {
        remember(&[1; 32]);
        std::thread::spawn(|| assert!(!is_fresh(&[1; 32])))
            .join()
            .unwrap();
        assert!(is_fresh(&[1; 32]));
    }

    #[test]
    fn nothing_is_fresh_while_an_app_leaves() {
        remember(&[1; 32]);
        {
            let _software = SoftwareKeys::begin();
            assert!(!is_fresh(&[1; 32]));
            remember(&[2; 32]);
            assert!(!is_fresh(&[2; 32]));
        }
        remember(&[3; 32]);
        assert!(is_fresh(&[3; 32]));
    }
}
