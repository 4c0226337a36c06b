use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use secrecy::SecretBox;

use super::*;
use crate::devices::Start;
use crate::devices::software::SoftwareDevice;
use crate::store_key::StoreKey;

const LIMITS: Limits = Limits {
    per_owner: 64,
    total: 256,
};

/// A real device on its thread; its files live as long as this.
struct Rig {
    thread: DeviceThreads<u32>,
    handle: DeviceHandle<u32>,
    _directory: tempfile::TempDir,
}

fn rig(limits: Limits) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let key = StoreKey::new(SecretBox::new(Box::new([1; 32])));
    let device = SoftwareDevice::open(
        "rig",
        &directory.path().join("d"),
        &key,
        Start::CreateIfAbsent,
    )
    .unwrap();
    let thread = DeviceThreads::spawn(Box::new(device), limits).unwrap();
    Rig {
        handle: thread.handle(),
        thread,
        _directory: directory,
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

/// Lets a job reach the queue without waiting for its answer.
async fn enqueue<F: Future>(job: F) -> Pin<Box<F>>
where
    F::Output: std::fmt::Debug,
{
    let mut job = Box::pin(job);
    poll_fn(|context| match job.as_mut().poll(context) {
        Poll::Pending => Poll::Ready(()),
        Poll::Ready(output) => panic!("it did not wait: {output:?}"),
    })
    .await;
    job
}

/// Occupies the device until the sender is used or dropped.
async fn occupy(
    handle: &DeviceHandle<u32>,
) -> (
    Pin<Box<impl Future<Output = Result<(), RunError>>>>,
    mpsc::Sender<()>,
) {
    let (release, released) = mpsc::channel();
    let (begun, has_begun) = oneshot::channel();
    let job = {
        let handle = handle.clone();
        async move {
            handle
                .run(0, Priority::Interactive, later(), move |_| {
                    let _ = begun.send(());
                    let _ = released.recv();
                    Ok(())
                })
                .await
        }
    };
    let job = enqueue(job).await;
    has_begun.await.unwrap();
    (job, release)
}

#[tokio::test]
async fn a_flooding_owner_does_not_delay_another() {
    let rig = rig(LIMITS);
    let (occupied, release) = occupy(&rig.handle).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let job = |owner: u32| {
        let (order, handle) = (Arc::clone(&order), rig.handle.clone());
        async move {
            handle
                .run(owner, Priority::Interactive, later(), move |_| {
                    order.lock().unwrap().push(owner);
                    Ok(())
                })
                .await
        }
    };
    let mut jobs = Vec::new();
    for _ in 0..50 {
        jobs.push(enqueue(job(1)).await);
    }
    jobs.push(enqueue(job(2)).await);
    release.send(()).unwrap();
    occupied.await.unwrap();
    for job in jobs {
        job.await.unwrap();
    }
    assert_eq!(order.lock().unwrap()[..2], [1, 2]);
}

#[tokio::test]
async fn a_job_whose_caller_has_gone_never_runs() {
    let rig = rig(LIMITS);
    let (occupied, release) = occupy(&rig.handle).await;
    let ran = Arc::new(AtomicBool::new(false));
    let abandoned = enqueue(rig.handle.run(1, Priority::Interactive, later(), {
        let ran = Arc::clone(&ran);
        move |_| {
            ran.store(true, Ordering::SeqCst);
            Ok(())
        }
    }))
    .await;
    drop(abandoned);
    release.send(()).unwrap();
    occupied.await.unwrap();
    // Owner 1's turn comes before this one's.
    rig.handle
        .run(1, Priority::Interactive, later(), |_| Ok(()))
        .await
        .unwrap();
    assert!(!ran.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_waiting_job_is_answered_at_its_deadline_though_the_device_hangs() {
    let rig = rig(LIMITS);
    let (occupied, release) = occupy(&rig.handle).await;
    let ran = Arc::new(AtomicBool::new(false));
    let work = {
        let ran = Arc::clone(&ran);
        move |_: &mut dyn Device| {
            ran.store(true, Ordering::SeqCst);
            Ok(())
        }
    };
    let soon = Instant::now() + Duration::from_millis(5);
    let answer = rig.handle.run(1, Priority::Interactive, soon, work).await;
    assert!(
        matches!(answer, Err(RunError::Timeout { begun: false })),
        "{answer:?}"
    );
    release.send(()).unwrap();
    occupied.await.unwrap();
    rig.handle
        .run(1, Priority::Interactive, later(), |_| Ok(()))
        .await
        .unwrap();
    assert!(!ran.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_expired_job_does_not_touch_the_device_though_nobody_withdrew_it() {
    let rig = rig(LIMITS);
    let ran = Arc::new(AtomicBool::new(false));
    let ticket = Arc::new(Ticket::new());
    let expired = Job {
        ticket: Arc::clone(&ticket),
        deadline: Instant::now(),
        work: Box::new({
            let ran = Arc::clone(&ran);
            move |_| {
                ran.store(true, Ordering::SeqCst);
                ControlFlow::Continue(())
            }
        }),
    };
    rig.handle
        .shared
        .push(1, Priority::Interactive, expired)
        .unwrap();
    rig.handle
        .run(1, Priority::Interactive, later(), |_| Ok(()))
        .await
        .unwrap();
    assert!(!ran.load(Ordering::SeqCst) && ticket.is_waiting());
}

#[tokio::test]
async fn a_caller_learns_that_its_job_had_begun() {
    let rig = rig(LIMITS);
    let mut allowed = Duration::from_millis(20);
    loop {
        let (release, released) = mpsc::channel::<()>();
        let begun = Arc::new(AtomicBool::new(false));
        let work = {
            let begun = Arc::clone(&begun);
            move |_: &mut dyn Device| {
                begun.store(true, Ordering::SeqCst);
                let _ = released.recv();
                Ok(())
            }
        };
        let answer = rig
            .handle
            .run(1, Priority::Interactive, Instant::now() + allowed, work)
            .await;
        // Holds the device until here, so that only the deadline can answer.
        drop(release);
        match answer {
            Err(RunError::Timeout { begun: true }) => {
                rig.handle
                    .run(1, Priority::Interactive, later(), |_| Ok(()))
                    .await
                    .unwrap();
                assert!(begun.load(Ordering::SeqCst));
                break;
            }
            // The machine was too busy to begin it in time.
            Err(RunError::Timeout { begun: false }) if allowed.as_secs() < 60 => allowed *= 2,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_finds_no_place_is_refused_at_once() {
    let rig = rig(Limits {
        per_owner: 2,
        total: 3,
    });
    let (occupied, release) = occupy(&rig.handle).await;
    let job = |owner| {
        rig.handle
            .run(owner, Priority::Interactive, later(), |_| Ok(()))
    };
    let first = enqueue(job(1)).await;
    let second = enqueue(job(1)).await;
    assert!(matches!(job(1).await, Err(RunError::Busy)));
    let third = enqueue(job(2)).await;
    assert!(matches!(job(3).await, Err(RunError::Busy)));
    // A caller that goes away makes room.
    drop(second);
    let fourth = enqueue(job(3)).await;
    release.send(()).unwrap();
    occupied.await.unwrap();
    for job in [first, third, fourth] {
        job.await.unwrap();
    }
}

#[tokio::test]
async fn shutting_down_answers_all_and_waits_for_the_device() {
    let rig = rig(LIMITS);
    let (occupied, release) = occupy(&rig.handle).await;
    let waiting = enqueue(rig.handle.run(1, Priority::Background, later(), |_| Ok(()))).await;
    let thread = rig.thread;
    let down = std::thread::spawn(move || thread.shut_down());
    // Though the device is still at work:
    assert!(matches!(waiting.await, Err(RunError::ShuttingDown)));
    let new = rig
        .handle
        .run(1, Priority::Interactive, later(), |_| Ok(()))
        .await;
    assert!(matches!(new, Err(RunError::ShuttingDown)));
    assert!(!down.is_finished());
    release.send(()).unwrap();
    occupied.await.unwrap();
    down.join().unwrap();
}

/// A device with a program of its own, whose end lets a call return that hangs.
struct HasProgram {
    release: Mutex<Option<mpsc::Sender<()>>>,
    all: Arc<std::sync::Barrier>,
}

impl Device for HasProgram {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::new(DeviceInfo {
            generations: None,
            name: "program".into(),
            kind: "test",
            state: DeviceState::Ready,
            reason: String::new(),
            facts: Vec::new(),
            support: Vec::new(),
            unlocked: BTreeSet::new(),
        })
    }

    fn stopper(&self) -> Option<Stopper> {
        let all = Arc::clone(&self.all);
        let release = lock(&self.release).take();
        Some(Box::new(move || {
            all.wait();
            drop(release);
        }))
    }
}

#[tokio::test]
async fn devices_stop_at_the_same_time_and_what_hangs_in_them_ends() {
    // Each stop waits for the others.
    let all = Arc::new(std::sync::Barrier::new(3));
    let (mut devices, mut hanging) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (release, released) = mpsc::channel();
        let device = HasProgram {
            release: Mutex::new(Some(release)),
            all: Arc::clone(&all),
        };
        let threads: DeviceThreads<u32> = DeviceThreads::spawn(Box::new(device), LIMITS).unwrap();
        let handle = threads.handle();
        let (begun, has_begun) = oneshot::channel();
        let job = async move {
            let hangs = move |_: &mut dyn Device| {
                begun.send(()).unwrap();
                Ok(released.recv().is_err())
            };
            handle.run(1, Priority::Interactive, later(), hangs).await
        };
        hanging.push(enqueue(job).await);
        has_begun.await.unwrap();
        devices.push(threads);
    }
    DeviceThreads::shut_down_all(devices).await.unwrap();
    for job in hanging {
        assert!(job.await.unwrap());
    }
}

#[tokio::test]
async fn a_panic_fails_the_device_and_everybody_learns_it() {
    let rig = rig(LIMITS);
    let (occupied, release) = occupy(&rig.handle).await;
    let panicking = enqueue(rig.handle.run(
        1,
        Priority::Interactive,
        later(),
        |_| -> Result<(), _> { panic!("as a faulty device would") },
    ))
    .await;
    let waiting = enqueue(
        rig.handle
            .run(1, Priority::Interactive, later(), |_| Ok(())),
    )
    .await;
    release.send(()).unwrap();
    occupied.await.unwrap();
    for answer in [panicking.await, waiting.await] {
        assert!(
            matches!(answer, Err(RunError::Device(DeviceError::Failed { .. }))),
            "{answer:?}"
        );
    }
    let new = rig
        .handle
        .run(2, Priority::Interactive, later(), |_| Ok(()))
        .await;
    assert!(matches!(
        new,
        Err(RunError::Device(DeviceError::Failed { .. }))
    ));
    assert_eq!(rig.handle.info().state, DeviceState::Failed);
    rig.thread.shut_down();
}

/// A device that is found locked when it is used.
struct Locks(Arc<DeviceInfo>);

impl Device for Locks {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&self.0)
    }

    fn signer(&mut self) -> Option<&mut dyn crate::devices::Sign> {
        let mut info = DeviceInfo::clone(&self.0);
        info.state = DeviceState::Locked;
        self.0 = Arc::new(info);
        None
    }
}

#[tokio::test]
async fn the_state_is_known_before_the_answer_comes() {
    let info = DeviceInfo {
        generations: None,
        name: "locks".into(),
        kind: "test",
        state: DeviceState::Ready,
        reason: String::new(),
        facts: Vec::new(),
        support: Vec::new(),
        unlocked: BTreeSet::new(),
    };
    let thread = DeviceThreads::spawn(Box::new(Locks(Arc::new(info))), LIMITS).unwrap();
    let handle = thread.handle();
    assert_eq!(handle.info().state, DeviceState::Ready);
    let answer = handle
        .run(1, Priority::Interactive, later(), |device| {
            device.signer().map(|_| ()).ok_or(DeviceError::BadBlob)
        })
        .await;
    assert!(matches!(
        answer,
        Err(RunError::Device(DeviceError::BadBlob))
    ));
    assert_eq!(handle.info().state, DeviceState::Locked);
}

/// What becomes of a device that is away: looked at, it is there.
struct Away {
    state: Arc<Mutex<DeviceState>>,
    looks: Arc<AtomicUsize>,
    /// A look waits for this.
    gate: Arc<Mutex<mpsc::Receiver<()>>>,
    hands: usize,
}

impl Device for Away {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::new(DeviceInfo {
            generations: None,
            name: "away".into(),
            kind: "test",
            state: *lock(&self.state),
            reason: String::new(),
            facts: Vec::new(),
            support: Vec::new(),
            unlocked: BTreeSet::new(),
        })
    }

    fn comes_back(&self) -> bool {
        true
    }

    fn probe(&mut self) {
        self.looks.fetch_add(1, Ordering::SeqCst);
        lock(&self.gate).recv().unwrap();
        *lock(&self.state) = DeviceState::Ready;
    }

    fn more_hands(&self) -> Vec<Box<dyn Device>> {
        let hand = |_| {
            Box::new(Self {
                state: Arc::clone(&self.state),
                looks: Arc::clone(&self.looks),
                gate: Arc::clone(&self.gate),
                hands: 0,
            }) as Box<dyn Device>
        };
        (0..self.hands).map(hand).collect()
    }
}

/// A device with three hands, which is away, and what lets it be found.
fn away() -> (DeviceThreads<u32>, Arc<AtomicUsize>, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    let looks = Arc::new(AtomicUsize::new(0));
    let device = Away {
        state: Arc::new(Mutex::new(DeviceState::Absent)),
        looks: Arc::clone(&looks),
        gate: Arc::new(Mutex::new(gate)),
        hands: 2,
    };
    let threads = DeviceThreads::spawn(Box::new(device), LIMITS).unwrap();
    (threads, looks, open)
}

#[tokio::test]
async fn a_device_that_is_away_is_looked_at_first_by_one_of_its_hands() {
    let (threads, looks, open) = away();
    let handle = threads.handle();
    assert_eq!(handle.info().state, DeviceState::Absent);
    let bell = Arc::new(Notify::new());
    handle.ring_when_ready(Arc::clone(&bell));
    let seen = enqueue(handle.seen()).await;
    open.send(()).unwrap();
    assert_eq!(seen.await.state, DeviceState::Ready);
    bell.notified().await;
    // It is ready: nobody looks again.
    let jobs = (0..20).map(|n| handle.run(n, Priority::Interactive, later(), |_| Ok(())));
    for job in jobs {
        job.await.unwrap();
    }
    assert_eq!(looks.load(Ordering::SeqCst), 1);
    threads.shut_down();
}

#[tokio::test]
async fn all_hands_work_at_once() {
    let (threads, _, open) = away();
    let handle = threads.handle();
    open.send(()).unwrap();
    handle.seen().await;
    // Each waits for the two others.
    let together = Arc::new(std::sync::Barrier::new(3));
    let job = |owner| {
        let together = Arc::clone(&together);
        handle.run(owner, Priority::Interactive, later(), move |_| {
            together.wait();
            Ok(())
        })
    };
    let (one, two, three) = tokio::join!(job(1), job(2), job(3));
    one.and(two).and(three).unwrap();
    threads.shut_down();
}

#[tokio::test]
async fn one_hand_that_panics_ends_the_device() {
    let (threads, _, open) = away();
    let handle = threads.handle();
    open.send(()).unwrap();
    handle.seen().await;
    let panics = |_: &mut dyn Device| -> Result<(), DeviceError> { panic!("a test's") };
    let answer = handle.run(1, Priority::Interactive, later(), panics).await;
    assert!(answer.is_err());
    let next = handle.run(1, Priority::Interactive, later(), |_| Ok(()));
    assert!(next.await.is_err());
    assert_eq!(handle.info().state, DeviceState::Failed);
    threads.shut_down();
}
