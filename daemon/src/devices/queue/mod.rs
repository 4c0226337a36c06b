//! One owner per device: dedicated threads, one for each of its hands, behind a
//! bounded, fair queue.
//!
//! [`DeviceThreads::spawn`] gives a device to its threads; [`DeviceHandle::run`]
//! brings a job there and waits for its answer. Nothing else touches the
//! device, no lock is held while it works, and neither side polls.
//!
//! A device that can come back is looked at by one of its threads: first of all,
//! so that a daemon starts without waiting for its devices, and then about once
//! a second while it is not ready. A device that is told of what happens to it rings
//! a bell instead.
//!
//! A job that has not begun when its deadline passes, or when its caller goes
//! away, never reaches the device. One that has begun is not interrupted; its
//! caller is told so at the deadline ([`RunError::Timeout`]).

use std::convert::Infallible;
use std::hash::Hash;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use self::fair::{FairQueue, Full};
pub use self::fair::{Limits, Priority};
use super::{Advice, Count, Device, DeviceError, DeviceInfo, DeviceState, KeyId, Meter, Stopper};

mod fair;
#[cfg(test)]
mod tests;

/// How often a device is looked at that is not ready: so often that it is in use
/// again within a second.
const PROBE_PERIOD: Duration = Duration::from_millis(900);

/// How long a request waits, after the start of the daemon, for a device's first
/// look at itself.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// How long a device that nothing can stop has for its last job. One that hangs must
/// not hold the daemon's end: the thread is left behind, and ends with the process.
const LAST_JOB: Duration = Duration::from_secs(10);

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

/// A device's threads. Dropping them shuts the device down without waiting.
pub struct DeviceThreads<O: Clone + Eq + Hash> {
    shared: Arc<Shared<O>>,
    threads: Vec<JoinHandle<()>>,
    /// Closed when the last of the threads has ended.
    ended: mpsc::Receiver<Infallible>,
    stopper: Option<Stopper>,
}

/// Brings jobs to a device, on behalf of owners of type `O`. Cheap to clone.
pub struct DeviceHandle<O> {
    shared: Arc<Shared<O>>,
}

struct Shared<O> {
    queue: Mutex<Queue<O>>,
    changed: Condvar,
    look: watch::Sender<Look>,
    meter: Option<Arc<dyn Meter>>,
    advice: Advice,
    /// Whom to tell when the device becomes ready.
    when_ready: OnceLock<Arc<Notify>>,
}

/// What the device was last seen to be.
struct Look {
    info: Arc<DeviceInfo>,
    /// Has it been looked at for the first time?
    seen: bool,
    /// How often it became ready.
    awakenings: u64,
}

struct Queue<O> {
    phase: Phase,
    jobs: FairQueue<O, Job>,
    /// When the device is to be looked at if it is not ready; `None`: one of its
    /// threads is just doing that.
    next_probe: Option<Instant>,
    /// Has the device's bell rung since it was looked at?
    rung: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
    /// The device's code panicked: what it would do next is anybody's guess.
    Failed,
}

/// What one of a device's threads does next.
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

impl<O: Clone + Eq + Hash + Send + 'static> DeviceThreads<O> {
    /// Starts the threads that own `device` from now on, one for each of its
    /// hands.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn spawn(mut device: Box<dyn Device>, limits: Limits) -> io::Result<Self> {
        let info = device.info();
        let comes_back = device.comes_back();
        let (meter, advice) = (device.meter(), device.advice());
        let stopper = device.stopper();
        // The kernel shows 15 bytes of a thread's name.
        let name = format!("dev-{}", info.name.chars().take(11).collect::<String>());
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                phase: Phase::Open,
                jobs: FairQueue::new(limits),
                next_probe: Some(Instant::now()),
                rung: false,
            }),
            changed: Condvar::new(),
            look: watch::Sender::new(Look {
                info,
                seen: !comes_back,
                awakenings: 0,
            }),
            meter,
            advice,
            when_ready: OnceLock::new(),
        });
        let rings = Arc::downgrade(&shared);
        device.hang_bell(Arc::new(move || {
            if let Some(shared) = rings.upgrade() {
                shared.ring();
            }
        }));
        let mut hands = device.more_hands();
        hands.insert(0, device);
        let (runs, ended) = mpsc::channel();
        // Dropped, it ends the threads that did start.
        let mut threads = Self {
            shared,
            threads: Vec::with_capacity(hands.len()),
            ended,
            stopper,
        };
        for hand in hands {
            let (shared, runs) = (Arc::clone(&threads.shared), runs.clone());
            let thread = std::thread::Builder::new().name(name.clone());
            let thread = thread.spawn(move || {
                own(hand, &shared);
                drop(runs);
            })?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }

    /// A handle to the device.
    #[must_use]
    pub fn handle(&self) -> DeviceHandle<O> {
        DeviceHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// [Shuts down](Self::shut_down) several devices at the same time: one that
    /// takes long delays no other. In a tokio runtime.
    ///
    /// # Errors
    /// If that panicked, for one of them.
    pub async fn shut_down_all(
        devices: impl IntoIterator<Item = Self>,
    ) -> Result<(), tokio::task::JoinError> {
        let devices = devices.into_iter();
        let ends: Vec<_> = devices
            .map(|device| tokio::task::spawn_blocking(|| device.shut_down()))
            .collect();
        let ended = futures::future::join_all(ends).await;
        ended.into_iter().collect()
    }

    /// Answers all waiting jobs with [`RunError::ShuttingDown`], blocks until
    /// the device has finished those that it is at, or its [`Stopper`] has ended
    /// them, and drops the device. One without a stopper that hangs is left behind
    /// after ten seconds, with its threads: what it was told last is then as after a
    /// crash in the middle of it.
    pub fn shut_down(mut self) {
        self.shared.end(Phase::Closed);
        match self.stopper.take() {
            Some(stop) => stop(),
            None if self.hangs() => {
                let device = &self.shared.look.borrow().info.name;
                tracing::warn!(
                    device,
                    "the device hangs, and does not end its last job: it is left behind"
                );
                return;
            }
            None => {}
        }
        for thread in self.threads.drain(..) {
            // It catches what the device panics with, so it ends in order.
            let _ = thread.join();
        }
    }
}

impl<O: Clone + Eq + Hash> DeviceThreads<O> {
    /// Do its threads not end in time?
    fn hangs(&self) -> bool {
        self.ended.recv_timeout(LAST_JOB) == Err(mpsc::RecvTimeoutError::Timeout)
    }
}

impl<O: Clone + Eq + Hash> Drop for DeviceThreads<O> {
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
        Arc::clone(&self.shared.look.borrow().info)
    }

    /// How often the device became ready: the same as long as it stays so.
    #[must_use]
    pub fn awakenings(&self) -> u64 {
        self.shared.look.borrow().awakenings
    }

    /// How many the device has of what it has only so many of. Never waits for
    /// the device.
    #[must_use]
    pub fn counts(&self) -> Vec<Count> {
        let meter = self.shared.meter.as_ref();
        meter.map_or_else(Vec::new, |meter| meter.counts())
    }

    /// What can be done about an error of the device.
    #[must_use]
    pub fn advice(&self, error: &DeviceError) -> &'static str {
        (self.shared.advice)(error)
    }

    /// What the device is and can do, once it has been looked at for the first
    /// time. Where that takes long, what is known so far.
    pub async fn seen(&self) -> Arc<DeviceInfo> {
        let mut look = self.shared.look.subscribe();
        // If nobody looked, the state says so.
        let _ = tokio::time::timeout(FIRST_LOOK, look.wait_for(|look| look.seen)).await;
        self.info()
    }

    /// Waits until the device says something else of itself than this.
    pub async fn other_than(&self, known: &DeviceInfo) -> Arc<DeviceInfo> {
        self.shows(|info| info != known).await;
        self.info()
    }

    /// Waits while the device is locked.
    pub async fn unlocked(&self) {
        self.shows(|info| info.state != DeviceState::Locked).await;
    }

    /// Waits while the key, which has a PIN of its own, is locked.
    pub async fn key_unlocked(&self, key: KeyId) {
        self.shows(|info| info.unlocked.contains(&key)).await;
    }

    /// Waits until this is true of what the device says of itself.
    async fn shows(&self, mut it: impl FnMut(&DeviceInfo) -> bool) {
        let mut look = self.shared.look.subscribe();
        // The sender lives as long as this handle.
        let _ = look.wait_for(|look| it(&look.info)).await;
    }

    /// Rings `bell` from now on when the device becomes ready. Only the first
    /// one is heard.
    pub fn ring_when_ready(&self, bell: Arc<Notify>) {
        let _ = self.shared.when_ready.set(bell);
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
                shared.see(device);
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

/// One of the device's threads.
fn own<O: Clone + Eq + Hash>(mut device: Box<dyn Device>, shared: &Shared<O>) {
    while let Some(next) = shared.next(device.comes_back()) {
        let Next::Job(job) = next else {
            let probed = catch_unwind(AssertUnwindSafe(|| {
                device.probe();
                shared.see(device.as_ref());
            }));
            if probed.is_err() {
                shared.end(Phase::Failed);
                break;
            }
            shared.probed();
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

    /// What a thread does next; `None` at the end.
    fn next(&self, comes_back: bool) -> Option<Next> {
        let mut queue = lock(&self.queue);
        while queue.phase == Phase::Open {
            let look_at = queue.next_probe.filter(|_| comes_back && !self.is_ready());
            let now = Instant::now();
            // What happened to it comes before what it is to do.
            if queue.rung {
                queue.rung = false;
                queue.next_probe = None;
                return Some(Next::Probe);
            }
            // Before all jobs the first time, since it says what they can do.
            let first = !self.look.borrow().seen;
            if look_at.is_some_and(|at| at <= now && (first || queue.jobs.is_empty())) {
                queue.next_probe = None;
                return Some(Next::Probe);
            }
            if let Some(job) = queue.jobs.pop() {
                return Some(Next::Job(job));
            }
            queue = match look_at {
                Some(at) => {
                    let wait = at.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(queue, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(queue);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        None
    }

    fn is_ready(&self) -> bool {
        self.look.borrow().info.state == DeviceState::Ready
    }

    /// Something happened to the device.
    fn ring(&self) {
        lock(&self.queue).rung = true;
        self.changed.notify_one();
    }

    /// The device has been looked at.
    fn probed(&self) {
        self.look.send_modify(|look| look.seen = true);
        lock(&self.queue).next_probe = Instant::now().checked_add(PROBE_PERIOD);
        // Somebody has to wait for the next time.
        self.changed.notify_one();
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
        self.look.send_modify(|look| {
            look.seen = true;
            if phase == Phase::Failed {
                look.info = Arc::new(DeviceInfo {
                    state: DeviceState::Failed,
                    reason: panicked().to_string(),
                    ..DeviceInfo::clone(&look.info)
                });
            }
        });
        self.changed.notify_all();
        drop(waiting);
    }

    /// Takes over what the device says of itself. Asked under the lock: of two
    /// threads the later one must not bring the older news.
    fn see(&self, device: &dyn Device) {
        let (mut was, mut is) = (false, false);
        self.look.send_if_modified(|look| {
            let before = std::mem::replace(&mut look.info, device.info());
            was = before.state == DeviceState::Ready;
            is = look.info.state == DeviceState::Ready;
            if is && !was {
                look.awakenings = look.awakenings.saturating_add(1);
            }
            before != look.info
        });
        if was && !is {
            // Who waits for jobs has to look at the device now.
            self.changed.notify_one();
        }
        if is
            && !was
            && let Some(bell) = self.when_ready.get()
        {
            bell.notify_one();
        }
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
