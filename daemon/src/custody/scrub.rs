//! The background pass over the registry: a row that was changed behind the
//! daemon's back is found before it is needed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Custody;
use crate::store::{ScrubPosition, StoreError};

/// Rows between two turns of the requests that read the registry.
const BATCH: u32 = 128;

/// A pass begins no sooner than this after the last one.
const PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// Most rows of one pass that have records of their own.
const MAX_RECORDS: u64 = 16;

impl Custody {
    /// The one task that verifies all rows: at the start, and once a day on a
    /// day when somebody connects. A daemon at rest stays at rest.
    pub async fn run_scrub(self: Arc<Self>) {
        if self.registry.read_only_reason().is_some() {
            // Without the store key no row can be told from a forged one.
            return;
        }
        loop {
            match self.scrub().await {
                Ok(0) => {}
                Ok(tampered) => {
                    tracing::error!(
                        tampered,
                        "rows of the registry were changed outside of mlskeyd: those that do not verify are not used, those that were moved are put right; see the records, and who can write the state directory"
                    );
                }
                Err(StoreError::Closed) => return,
                Err(error) => tracing::warn!(%error, "the pass over the registry stopped"),
            }
            let done = Instant::now();
            while done.elapsed() < PAUSE {
                self.connected.notified().await;
            }
        }
    }

    /// One pass; answers how many rows somebody changed.
    async fn scrub(&self) -> Result<u64, StoreError> {
        let mut next = Some(ScrubPosition::default());
        let mut tampered: u64 = 0;
        while let Some(position) = next {
            let part = self.registry.scrub(position, BATCH).await?;
            for error in part.tampered {
                tampered = tampered.saturating_add(1);
                if tampered <= MAX_RECORDS {
                    self.note("RowTampered", error.to_string()).await;
                }
            }
            next = part.next;
            tokio::task::yield_now().await;
        }
        Ok(tampered)
    }
}
