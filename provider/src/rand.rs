//! The random source.

use std::sync::Arc;

use openmls_traits::random::OpenMlsRand;

use crate::fresh;

/// Draws from the inner source, and remembers what a key may be made from.
///
/// Only `random_vec` is remembered: OpenMLS draws the seeds of HPKE keys with
/// it. The memory is wiped, holds one value, and is this thread's.
#[derive(Debug)]
pub struct CustodyRand<C> {
    inner: Arc<C>,
}

impl<C> Clone for CustodyRand<C> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<C> CustodyRand<C> {
    pub(crate) const fn new(inner: Arc<C>) -> Self {
        Self { inner }
    }
}

impl<C: OpenMlsRand> OpenMlsRand for CustodyRand<C> {
    type Error = C::Error;

    fn random_array<const N: usize>(&self) -> Result<[u8; N], Self::Error> {
        self.inner.random_array()
    }

    fn random_vec(&self, len: usize) -> Result<Vec<u8>, Self::Error> {
        let random = self.inner.random_vec(len)?;
        fresh::remember(&random);
        Ok(random)
    }
}

#[cfg(test)]
mod tests {
    use openmls_rust_crypto::RustCrypto;

    use super::*;

    #[test]
    fn what_random_vec_draws_is_remembered_and_arrays_are_not() {
        let rand = CustodyRand::new(Arc::new(RustCrypto::default()));
        let seed = rand.random_vec(32).unwrap();
        let array = rand.random_array::<32>().unwrap();
        assert!(fresh::is_fresh(&seed));
        assert!(!fresh::is_fresh(&array));
    }
}
