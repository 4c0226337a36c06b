//! One owner per device: a dedicated thread behind a bounded, fair queue.
//!
//! [`DeviceThread::spawn`] gives a device to its thread; [`DeviceHandle::run`]
//! brings a job there and waits for its answer. Nothing else touches the
//! device, no lock is held while it works, and neither side polls.
//!
//! A job that has not begun when its deadline passes, or when its caller goes
//! away, never reaches the device. One that has begun is not interrupted; its
//! caller is told so at the deadline ([`RunError::Timeout`]).

use std::hash::Hash;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use self::fair::{FairQueue, Full};
pub use self::fair::{Limits, Priority};
use super::{Device, DeviceError, DeviceInfo, DeviceState};

mod fair;
#[cfg(test)]
mod tests;

/// How often a device is looked at that is not ready.
const PROBE_PERIOD: Duration = Duration::from_secs(1);

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Too many jobs wait: of this owner, or of all.
    #[error("too many requests wait for the device; repeat the request later")]
    Busy,
    /// The deadline passed.
    #[error("the device did not answer in time; {}", timeout_advice(*begun))]
    Timeout {
        /// Whether the device had begun: then it may still finish, and its
        /// result is lost. If not, the job will never run.
        begun: bool,
    },
    /// The device is being shut down.
    #[error("the daemon is stopping; repeat the request when it is back")]
    ShuttingDown,
    /// The device had the job, and this is its answer.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

const fn timeout_advice(begun: bool) -> &'static str {
    if begun {
        "it had begun, look what became of it before you repeat"
    } else {
        "repeat the request"
    }
}

/// A device's thread. Dropping it shuts the device down without waiting.
pub struct DeviceThread<O: Clone + Eq + Hash> {
    shared: Arc<Shared<O>>,
    thread: Option<JoinHandle<()>>,
}

/// Brings jobs to a device, on behalf of owners of type `O`. Cheap to clone.
pub struct DeviceHandle<O> {
    shared: Arc<Shared<O>>,
}

struct Shared<O> {
    queue: Mutex<Queue<O>>,
    changed: Condvar,
    info: watch::Sender<Arc<DeviceInfo>>,
}

struct Queue<O> {
    phase: Phase,
    jobs: FairQueue<O, Job>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
    /// The device's code panicked: what it would do next is anybody's guess.
    Failed,
}

/// What a device's thread does next.
enum Next {
    Job(Job),
    /// The device is not ready: is it back?
    Probe,
}

struct Job {
    ticket: Arc<Ticket>,
    deadline: Instant,
    work: Work,
}

/// Answers the caller by itself; breaks when the device must not be used any
/// more.
type Work = Box<dyn FnOnce(&mut dyn Device) -> ControlFlow<()> + Send>;

impl<O: Clone + Eq + Hash + Send + 'static> DeviceThread<O> {
    /// Starts the thread that owns `device` from now on.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn spawn(device: Box<dyn Device>, limits: Limits) -> io::Result<Self> {
        let info = device.info();
        // The kernel shows 15 bytes of a thread's name.
        let name = format!("dev-{}", info.name.chars().take(11).collect::<String>());
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                phase: Phase::Open,
                jobs: FairQueue::new(limits),
            }),
            changed: Condvar::new(),
            info: watch::Sender::new(info),
        });
        let thread = std::thread::Builder::new().name(name).spawn({
            let shared = Arc::clone(&shared);
            move || own(device, &shared)
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// A handle to the device.
    #[must_use]
    pub fn handle(&self) -> DeviceHandle<O> {
        DeviceHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Answers all waiting jobs with [`RunError::ShuttingDown`], blocks until
    /// the device has finished the one that it is at, and drops the device.
    pub fn shut_down(mut self) {
        self.shared.end(Phase::Closed);
        if let Some(thread) = self.thread.take() {
            // It catches what the device panics with, so it ends in order.
            let _ = thread.join();
        }
    }
}

impl<O: Clone + Eq + Hash> Drop for DeviceThread<O> {
    fn drop(&mut self) {
        self.shared.end(Phase::Closed);
    }
}

impl<O> Clone for DeviceHandle<O> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<O: Clone + Eq + Hash + Send + 'static> DeviceHandle<O> {
    /// What the device is and can do, as it was after its last job. Never waits
    /// for the device.
    #[must_use]
    pub fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&self.shared.info.borrow())
    }

    /// Waits while the device is locked.
    pub async fn unlocked(&self) {
        let mut seen = self.shared.info.subscribe();
        // The sender lives as long as this handle.
        let _ = seen
            .wait_for(|info| info.state != DeviceState::Locked)
            .await;
    }

    /// Runs `work` on the device, when it is `owner`'s turn, and waits for its
    /// result. Dropping the future withdraws the job if it has not begun. Needs
    /// a tokio runtime with time.
    ///
    /// # Errors
    /// [`RunError::Busy`] at once, [`RunError::Timeout`] at the deadline,
    /// [`RunError::ShuttingDown`], and [`RunError::Device`] with the answer of
    /// `work`. After a panic of `work` this and all later answers are
    /// [`DeviceError::Failed`].
    pub async fn run<T, F>(
        &self,
        owner: O,
        priority: Priority,
        deadline: Instant,
        work: F,
    ) -> Result<T, RunError>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Device) -> Result<T, DeviceError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let ticket = Arc::new(Ticket::new());
        let withdraw = WithdrawOnDrop(Arc::clone(&ticket));
        let shared = Arc::clone(&self.shared);
        let work = move |device: &mut dyn Device| {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let result = work(device);
                shared.see(device.info());
                result
            }));
            let (result, then) = match caught {
                Ok(result) => (result, ControlFlow::Continue(())),
                Err(_) => {
                    shared.end(Phase::Failed);
                    (Err(panicked()), ControlFlow::Break(()))
                }
            };
            // Nobody listens if the caller's deadline passed meanwhile.
            let _ = answer.send(result);
            then
        };
        self.shared.push(
            owner,
            priority,
            Job {
                ticket,
                deadline,
                work: Box::new(work),
            },
        )?;

        match tokio::time::timeout_at(deadline.into(), answered).await {
            Ok(Ok(result)) => result.map_err(RunError::Device),
            Ok(Err(_dropped_unrun)) => Err(self.shared.why_dropped()),
            Err(_elapsed) => Err(RunError::Timeout {
                begun: !withdraw.0.withdraw(),
            }),
        }
    }
}

/// The device's thread.
fn own<O: Clone + Eq + Hash>(mut device: Box<dyn Device>, shared: &Shared<O>) {
    while let Some(next) = shared.next(device.comes_back()) {
        let Next::Job(job) = next else {
            let probed = catch_unwind(AssertUnwindSafe(|| {
                device.probe();
                shared.see(device.info());
            }));
            if probed.is_err() {
                shared.end(Phase::Failed);
                break;
            }
            continue;
        };
        if job.deadline <= Instant::now() || !job.ticket.begin() {
            continue;
        }
        if (job.work)(device.as_mut()).is_break() {
            break;
        }
    }
    // A panic here must not look like one of the thread's own.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(device)));
}

impl<O: Clone + Eq + Hash> Shared<O> {
    fn push(&self, owner: O, priority: Priority, job: Job) -> Result<(), RunError> {
        let mut queue = lock(&self.queue);
        match queue.phase {
            Phase::Open => {}
            Phase::Closed => return Err(RunError::ShuttingDown),
            Phase::Failed => return Err(RunError::Device(panicked())),
        }
        let now = Instant::now();
        let wanted = |job: &Job| job.ticket.is_waiting() && job.deadline > now;
        queue
            .jobs
            .push(owner, priority, job, wanted)
            .map_err(|Full| RunError::Busy)?;
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    /// What the thread does next; `None` at the end.
    fn next(&self, comes_back: bool) -> Option<Next> {
        let may_come_back = comes_back && self.info.borrow().state != DeviceState::Ready;
        let mut queue = lock(&self.queue);
        while queue.phase == Phase::Open {
            if let Some(job) = queue.jobs.pop() {
                return Some(Next::Job(job));
            }
            if may_come_back {
                let waited = self.changed.wait_timeout(queue, PROBE_PERIOD);
                let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                queue = guard;
                if timeout.timed_out() && queue.phase == Phase::Open {
                    return Some(Next::Probe);
                }
            } else {
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        None
    }

    /// Ends the queue, the first time only, and answers all that wait.
    fn end(&self, phase: Phase) {
        let mut queue = lock(&self.queue);
        if queue.phase != Phase::Open {
            return;
        }
        queue.phase = phase;
        let waiting = queue.jobs.take();
        drop(queue);
        if phase == Phase::Failed {
            let mut failed = DeviceInfo::clone(&self.info.borrow());
            failed.state = DeviceState::Failed;
            failed.reason = panicked().to_string();
            self.see(Arc::new(failed));
        }
        self.changed.notify_all();
        drop(waiting);
    }

    fn see(&self, seen: Arc<DeviceInfo>) {
        self.info.send_if_modified(|info| {
            let is_new = !Arc::ptr_eq(info, &seen);
            *info = seen;
            is_new
        });
    }

    /// Why a job was dropped without having run.
    fn why_dropped(&self) -> RunError {
        match lock(&self.queue).phase {
            Phase::Open => RunError::Timeout { begun: false },
            Phase::Closed => RunError::ShuttingDown,
            Phase::Failed => RunError::Device(panicked()),
        }
    }
}

fn panicked() -> DeviceError {
    DeviceError::Failed {
        reason: "its code panicked, see the daemon's log".to_owned(),
    }
}

/// No code of a device or a caller runs under these locks, so what they guard
/// is whole even if some thread died.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Decides once, between the device's thread and the caller, whether a job
/// begins or is withdrawn.
struct Ticket(AtomicU8);

impl Ticket {
    const WAITING: u8 = 0;
    const BEGUN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    const fn new() -> Self {
        Self(AtomicU8::new(Self::WAITING))
    }

    fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::WAITING
    }

    /// Whether the job may begin.
    fn begin(&self) -> bool {
        self.leave_waiting(Self::BEGUN)
    }

    /// Whether the job will never begin.
    fn withdraw(&self) -> bool {
        self.leave_waiting(Self::WITHDRAWN)
    }

    fn leave_waiting(&self, to: u8) -> bool {
        self.0
            .compare_exchange(Self::WAITING, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

struct WithdrawOnDrop(Arc<Ticket>);

impl Drop for WithdrawOnDrop {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}
