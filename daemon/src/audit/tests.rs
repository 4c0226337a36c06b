//! The log on real files; a full disk is a real one, a failing sync is not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use mlskeyd_protocol::v1::{KeyId, Owner};

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

fn caller(uid: u32) -> Option<AuditCaller> {
    Some(AuditCaller {
        owner: Owner {
            uid,
            app: "default".into(),
        },
        pid: Some(4711),
        program: None,
    })
}

fn served(number: u64) -> Record {
    let outcome = AuditOutcome::Served {
        policy: "builtin/owner".into(),
    };
    Record {
        caller: caller(1000),
        key: Some(KeyId::from_bytes([7; 16])),
        identity: Some("alice@example.com".into()),
        epoch: Some(number),
        content: Some([9; 32]),
        ..Record::new("SignCommit", outcome)
    }
}

fn denied(uid: u32, reason: &'static str) -> Record {
    let outcome = AuditOutcome::Denied {
        policy: "builtin/unknown-structure".into(),
        reason: reason.into(),
    };
    Record {
        caller: caller(uid),
        ..Record::new("SignUnknown", outcome)
    }
}

/// A log of `count` records.
fn write_log(directory: &Path, count: u64) {
    let (log, _) = AuditLog::open(directory).unwrap();
    runtime().block_on(async {
        for number in 1..=count {
            log.append(served(number), Durability::Soon).await.unwrap();
        }
    });
}

fn records(directory: &Path) -> Vec<Record> {
    let entries = Entries::open(&directory.join(FILE_NAME)).unwrap();
    entries.map(|entry| entry.unwrap().record).collect()
}

#[test]
fn what_is_appended_is_read_back_in_order_and_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    write_log(dir.path(), 3);
    let (log, opened) = AuditLog::open(dir.path()).unwrap();
    assert_eq!((opened.end.sequence, opened.torn), (3, 0));
    runtime()
        .block_on(log.append(served(4), Durability::Now))
        .unwrap();
    assert_eq!(log.sequence(), 4);
    drop(log);

    let read = records(dir.path());
    let epochs: Vec<_> = read.iter().map(|r| r.epoch.unwrap()).collect();
    assert_eq!(epochs, [1, 2, 3, 4]);
    assert_eq!(
        Record {
            time: 0,
            ..read[3].clone()
        },
        Record {
            time: 0,
            ..served(4)
        }
    );
    let report = verify(&dir.path().join(FILE_NAME)).unwrap();
    assert_eq!((report.entries, report.torn), (4, 0));
    assert_eq!(report.times, Some((read[0].time, read[3].time)));
}

#[test]
fn a_long_log_is_opened_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    write_log(dir.path(), 1500);
    // A change far from the end is `verify`'s to find, not the start's.
    let path = dir.path().join(FILE_NAME);
    let file = File::options().write(true).open(&path).unwrap();
    FileExt::write_all_at(&file, b"x", 100).unwrap();
    write_log(dir.path(), 1);
    assert!(matches!(
        verify(&path),
        Err(ReadError::Broken {
            offset: 32,
            after: 0,
            ..
        })
    ));
}

#[test]
fn a_torn_last_entry_is_cut_off_at_every_byte_and_that_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    write_log(dir.path(), 2);
    let shorter = fs::read(&path).unwrap().len();
    write_log(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    for zeros in [0, 64] {
        for cut in shorter + 1..whole.len() {
            // Zeros in the place of zeros make the entry whole again: its hash may end in some.
            if zeros > 0 && whole[cut..].iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut torn = whole[..cut].to_vec();
            torn.resize(cut + zeros, 0);
            fs::write(&path, &torn).unwrap();
            let (_, opened) = AuditLog::open(dir.path()).unwrap();
            let bytes = (cut - shorter + zeros) as u64;
            assert_eq!(
                (opened.end.sequence, opened.torn),
                (2, bytes),
                "cut at {cut}, {zeros} zeros"
            );
            let read = records(dir.path());
            assert_eq!(read.len(), 3);
            assert_eq!(read[2].action, "CutTornEntry");
            assert_eq!(verify(&path).unwrap().torn, 0);
        }
    }
    // Zeros alone, from the end of an entry on.
    let mut torn = whole.clone();
    torn.resize(whole.len() + 4096, 0);
    fs::write(&path, &torn).unwrap();
    let (_, opened) = AuditLog::open(dir.path()).unwrap();
    assert_eq!((opened.end.sequence, opened.torn), (3, 4096));
}

#[test]
fn a_torn_header_begins_the_log_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    write_log(dir.path(), 0);
    let header = fs::read(&path).unwrap();
    assert_eq!(header.len(), 32);
    for cut in 0..header.len() {
        for torn in [header[..cut].to_vec(), vec![0; cut]] {
            fs::write(&path, &torn).unwrap();
            write_log(dir.path(), 1);
            assert_eq!(verify(&path).unwrap().entries, 1);
        }
    }
}

#[test]
fn a_change_of_any_byte_is_found_and_the_log_is_not_written_further() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    write_log(dir.path(), 3);
    let honest = fs::read(&path).unwrap();
    for at in 0..honest.len() {
        for flip in [1, 0x80] {
            let mut changed = honest.clone();
            changed[at] ^= flip;
            fs::write(&path, &changed).unwrap();
            assert!(verify(&path).is_err(), "byte {at} ^ {flip:#x}");
            let error = AuditLog::open(dir.path()).unwrap_err();
            assert!(
                matches!(error, OpenError::Untrusted { .. }),
                "byte {at}: {error}"
            );
            assert!(error.to_string().contains("move it aside"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), changed);
        }
    }
}

#[test]
fn removed_swapped_and_foreign_entries_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let mut ends = Vec::new();
    for _ in 0..3 {
        write_log(dir.path(), 1);
        ends.push(fs::metadata(&path).unwrap().len() as usize);
    }
    let log = fs::read(&path).unwrap();
    let other = tempfile::tempdir().unwrap();
    write_log(other.path(), 1);
    let foreign = fs::read(other.path().join(FILE_NAME)).unwrap();

    let (first, second, third) = (
        &log[32..ends[0]],
        &log[ends[0]..ends[1]],
        &log[ends[1]..ends[2]],
    );
    let header = &log[..32];
    for parts in [
        vec![header, first, third],
        vec![header, second, third],
        vec![header, second, first, third],
        vec![header, first, first, second, third],
        vec![header, &foreign[32..]],
        vec![&foreign[..32], first, second, third],
    ] {
        fs::write(&path, parts.concat()).unwrap();
        assert!(matches!(verify(&path), Err(ReadError::Broken { .. })));
        assert!(AuditLog::open(dir.path()).is_err());
    }
}

#[test]
fn concurrent_appends_are_all_there_and_each_caller_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = AuditLog::open(dir.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()
        .unwrap();
    let log = Arc::new(log);
    let tasks: Vec<_> = (0..8)
        .map(|uid| {
            let log = Arc::clone(&log);
            runtime.spawn(async move {
                for number in 0..100 {
                    let durability = if number % 7 == 0 {
                        Durability::Now
                    } else {
                        Durability::Soon
                    };
                    let record = Record {
                        caller: caller(uid),
                        ..served(number)
                    };
                    log.append(record, durability).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    drop(log);
    let read = records(dir.path());
    assert_eq!(read.len(), 800);
    for uid in 0..8 {
        let epochs = read
            .iter()
            .filter(|r| r.asker().unwrap().uid == uid)
            .map(|r| r.epoch.unwrap());
        assert!(epochs.eq(0..100));
    }
}

#[test]
fn equal_refusals_in_a_row_are_counted_in_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = AuditLog::open(dir.path()).unwrap();
    runtime().block_on(async {
        for _ in 0..50 {
            log.append(denied(1000, "a"), Durability::Now)
                .await
                .unwrap();
            // Another caller does not interrupt the row.
            log.append(
                Record {
                    caller: caller(1001),
                    ..served(1)
                },
                Durability::Soon,
            )
            .await
            .unwrap();
        }
        log.append(denied(1000, "b"), Durability::Now)
            .await
            .unwrap();
        log.append(served(2), Durability::Now).await.unwrap();
        log.append(denied(1000, "b"), Durability::Now)
            .await
            .unwrap();
        log.append(denied(1000, "b"), Durability::Now)
            .await
            .unwrap();
    });
    drop(log);
    let of_1000: Vec<_> = records(dir.path())
        .into_iter()
        .filter(|r| r.asker().unwrap().uid == 1000)
        .map(|r| (r.outcome, r.repeated))
        .collect();
    let (a, b) = (denied(1000, "a").outcome, denied(1000, "b").outcome);
    let expected = [
        (a.clone(), 0),
        (a, 49),
        (b.clone(), 0),
        (served(2).outcome, 0),
        (b.clone(), 0),
        (b, 1),
    ];
    assert_eq!(of_1000, expected);
}

#[test]
fn a_count_is_written_without_anything_else_coming() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let (file, _) = log::open(&path).unwrap();
    let timing = Timing {
        repeat_window: Duration::from_millis(20),
        ..TIMING
    };
    let log = AuditLog::start(file, PathBuf::new(), timing).unwrap();
    runtime().block_on(async {
        for _ in 0..10 {
            log.append(denied(1000, "a"), Durability::Now)
                .await
                .unwrap();
        }
    });
    let counted = || records(dir.path()).iter().map(|r| r.repeated).sum::<u64>();
    while counted() < 9 {
        std::thread::yield_now();
    }
    assert_eq!(counted(), 9);
}

#[test]
fn refusals_of_very_many_callers_are_all_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = AuditLog::open(dir.path()).unwrap();
    runtime().block_on(async {
        for uid in 0..300 {
            log.append(denied(uid, "a"), Durability::Soon)
                .await
                .unwrap();
            log.append(denied(uid, "a"), Durability::Soon)
                .await
                .unwrap();
        }
    });
    drop(log);
    let read = records(dir.path());
    assert_eq!(read.iter().filter(|r| r.repeated == 0).count(), 300);
    assert_eq!(read.iter().map(|r| r.repeated).sum::<u64>(), 300);
}

#[test]
fn a_record_that_is_too_long_is_refused_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = AuditLog::open(dir.path()).unwrap();
    runtime().block_on(async {
        let long = Record {
            identity: Some("x".repeat(20_000)),
            ..served(1)
        };
        assert_eq!(
            log.append(long, Durability::Now).await,
            Err(AuditError::TooLong)
        );
        log.append(served(1), Durability::Now).await.unwrap();
    });
    assert_eq!(verify(&dir.path().join(FILE_NAME)).unwrap().entries, 1);
}

#[test]
fn only_one_daemon_writes_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = AuditLog::open(dir.path()).unwrap();
    assert!(matches!(
        AuditLog::open(dir.path()),
        Err(OpenError::InUse(_))
    ));
    drop(first);
    AuditLog::open(dir.path()).unwrap();
}

#[test]
fn the_file_is_the_daemons_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    write_log(dir.path(), 1);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = AuditLog::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("0640") && error.contains("0600"), "{error}");
    fs::rename(&path, dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", &path).unwrap();
    assert!(matches!(
        AuditLog::open(dir.path()),
        Err(OpenError::Refused { .. })
    ));
}

/// Where the test of the full disk finds its small disk, in its child process.
const SMALL_DISK: &str = "MLSKEYD_TEST_SMALL_DISK";

#[test]
fn a_full_disk_refuses_and_works_again_when_there_is_room() {
    if let Some(disk) = std::env::var_os(SMALL_DISK) {
        return fill_disk(Path::new(&disk));
    }
    // A mount of its own, which ends with the process that it is made for.
    let disk = tempfile::tempdir().unwrap();
    let root = rustix::process::geteuid().is_root();
    let script =
        "mount -t tmpfs -o size=256k none \"$1\" && exec \"$2\" --exact \"$3\" --nocapture";
    let test = std::thread::current().name().unwrap().to_owned();
    let output = Command::new("unshare")
        .args(if root { &["-m"][..] } else { &["-r", "-m"] })
        .args(["sh", "-c", script, "sh"])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(SMALL_DISK, disk.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn fill_disk(disk: &Path) {
    let filler = disk.join("filler");
    let (log, _) = AuditLog::open(disk).unwrap();
    runtime().block_on(async {
        log.append(served(1), Durability::Now).await.unwrap();
        for round in 0..3 {
            let full = fs::write(&filler, vec![0; 1024 * 1024]).unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            // What is left of the last page.
            let error = loop {
                if let Err(error) = log.append(served(round), Durability::Soon).await {
                    break error;
                }
            };
            assert_eq!(error, AuditError::DiskFull);
            let refused = log.append(served(99), Durability::Now).await;
            assert_eq!(refused, Err(AuditError::DiskFull));
            assert_eq!(log.check(), Err(AuditError::DiskFull));
            fs::remove_file(&filler).unwrap();
            // It finds out by itself.
            while log.check().is_err() {
                tokio::task::yield_now().await;
            }
            log.append(served(10), Durability::Soon).await.unwrap();
        }
    });
    let sequence = log.sequence();
    drop(log);
    let report = verify(&disk.join(FILE_NAME)).unwrap();
    assert_eq!((report.entries, report.torn), (sequence, 0));
    assert!(!records(disk).iter().any(|r| r.epoch == Some(99)));
}

/// A file whose syncs fail or hang when told to. A failed sync loses what was
/// written since the last good one, as Linux may do.
struct Failing {
    file: File,
    fail: AtomicBool,
    hang: Mutex<()>,
    synced: Mutex<Vec<u8>>,
}

impl Medium for Arc<Failing> {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.file, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        let _hang = self.hang.lock().unwrap();
        let mut synced = self.synced.lock().unwrap();
        let len = self.file.metadata()?.len() as usize;
        if self.fail.load(Ordering::SeqCst) {
            let mut lost = synced.clone();
            lost.resize(len, 0);
            FileExt::write_all_at(&self.file, &lost, 0)?;
            return Err(io::Error::other("injected"));
        }
        synced.resize(len, 0);
        self.file.read_exact_at(&mut synced, 0)
    }
}

/// A log on a failing disk, and that disk.
fn failing_log(directory: &Path, timing: Timing) -> (AuditLog, Arc<Failing>) {
    write_log(directory, 0);
    let path = directory.join(FILE_NAME);
    let synced = fs::read(&path).unwrap();
    let tip = chain::after_header(synced[..].try_into().unwrap()).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let disk = Arc::new(Failing {
        file,
        fail: AtomicBool::new(false),
        hang: Mutex::new(()),
        synced: Mutex::new(synced),
    });
    (
        AuditLog::start(Log::new(Arc::clone(&disk), tip), PathBuf::new(), timing).unwrap(),
        disk,
    )
}

#[test]
fn a_failed_sync_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    // No sync by itself: the acknowledged record waits for one.
    let timing = Timing {
        sync_within: Duration::from_secs(3600),
        ..TIMING
    };
    let (log, disk) = failing_log(dir.path(), timing);
    runtime().block_on(async {
        log.append(served(1), Durability::Now).await.unwrap();
        log.append(served(2), Durability::Soon).await.unwrap();
        disk.fail.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            let error = log.append(served(3), Durability::Now).await.unwrap_err();
            assert!(matches!(error, AuditError::Unwritable(_)), "{error}");
            // Nor is anything acknowledged that is only written.
            log.append(served(4), Durability::Soon).await.unwrap_err();
        }
        assert_eq!(log.sequence(), 2);
        assert!(log.check().is_err());
        disk.fail.store(false, Ordering::SeqCst);
        log.append(served(5), Durability::Soon).await.unwrap();
    });
    drop(log);
    let epochs: Vec<_> = records(dir.path())
        .iter()
        .map(|r| r.epoch.unwrap_or_default())
        .collect();
    // The record that says that it failed names no epoch.
    assert_eq!(epochs, [1, 2, 0, 5]);
    assert_eq!(verify(&dir.path().join(FILE_NAME)).unwrap().torn, 0);
}

#[test]
fn counts_outlive_a_failing_disk_and_unwritten_refusals_are_not_counted_on() {
    let dir = tempfile::tempdir().unwrap();
    let (log, disk) = failing_log(dir.path(), TIMING);
    runtime().block_on(async {
        log.append(denied(1000, "a"), Durability::Now)
            .await
            .unwrap();
        log.append(denied(1000, "a"), Durability::Now)
            .await
            .unwrap();
        disk.fail.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            log.append(denied(1000, "b"), Durability::Now)
                .await
                .unwrap_err();
        }
        disk.fail.store(false, Ordering::SeqCst);
        log.append(denied(1000, "b"), Durability::Now)
            .await
            .unwrap();
    });
    drop(log);
    let read: Vec<_> = records(dir.path())
        .into_iter()
        .filter(|r| r.action != "AuditInterrupted")
        .map(|r| (r.outcome, r.repeated))
        .collect();
    let (a, b) = (denied(1000, "a").outcome, denied(1000, "b").outcome);
    assert_eq!(read, [(a.clone(), 0), (a, 1), (b, 0)]);
}

#[test]
fn what_is_written_soon_is_synced_without_anything_else_coming() {
    let dir = tempfile::tempdir().unwrap();
    let (log, disk) = failing_log(dir.path(), TIMING);
    runtime()
        .block_on(log.append(served(1), Durability::Soon))
        .unwrap();
    let written = fs::read(dir.path().join(FILE_NAME)).unwrap();
    while *disk.synced.lock().unwrap() != written {
        std::thread::yield_now();
    }
}

#[test]
fn a_disk_that_does_not_answer_is_a_timeout_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let timing = Timing {
        answer_within: Duration::from_millis(50),
        ..TIMING
    };
    let (log, disk) = failing_log(dir.path(), timing);
    let hung = disk.hang.lock().unwrap();
    let error = runtime()
        .block_on(log.append(served(1), Durability::Now))
        .unwrap_err();
    assert_eq!(error, AuditError::Timeout);
    while log.check() != Err(AuditError::Timeout) {
        std::thread::yield_now();
    }
    drop(hung);
    while log.check().is_err() {
        std::thread::yield_now();
    }
    while runtime()
        .block_on(log.append(served(2), Durability::Now))
        .is_err()
    {}
    drop(log);
    assert!(verify(&dir.path().join(FILE_NAME)).unwrap().entries >= 2);
}
