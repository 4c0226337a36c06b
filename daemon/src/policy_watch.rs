//! Being told when policies change on disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// So long nothing may happen before it is looked at what did: who changes one file
/// often changes more.
const QUIET: Duration = Duration::from_millis(200);

/// Directories that are watched.
pub(crate) struct PolicyWatch {
    directories: Vec<PathBuf>,
    watcher: RecommendedWatcher,
    rung: Arc<Notify>,
}

impl PolicyWatch {
    pub(crate) fn new(directories: Vec<PathBuf>) -> notify::Result<Self> {
        let rung = Arc::new(Notify::new());
        let bell = Arc::clone(&rung);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Reading them is none.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                bell.notify_one();
            }
        })?;
        let mut watch = Self {
            directories,
            watcher,
            rung,
        };
        watch.look_at_all();
        Ok(watch)
    }

    /// Watches each, or where it would be if it is not there.
    fn look_at_all(&mut self) {
        let Self {
            directories,
            watcher,
            ..
        } = self;
        for directory in directories {
            let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) else {
                continue;
            };
            let parent = directory
                .parent()
                .map(|it| watcher.watch(it, RecursiveMode::NonRecursive));
            if !matches!(parent, Some(Ok(()))) {
                tracing::debug!(%error, directory = %directory.display(), "it is not seen when policies appear there");
            }
        }
    }

    /// Waits until something has changed, and nothing more does.
    pub(crate) async fn changed(&mut self) {
        self.rung.notified().await;
        while tokio::time::timeout(QUIET, self.rung.notified())
            .await
            .is_ok()
        {}
        // What was not there may be there now.
        self.look_at_all();
    }
}
