//! What the machine has measured, and who approved it.

use super::*;
use mlskeyd_protocol::limits::MAX_SIGNATURE;
use mlskeyd_protocol::v1::{ApproveMeasurements, Measurements, ReadMeasurements};
use sha2::{Digest as _, Sha256};

impl devices::Approve for Token {
    fn measurements(&mut self) -> Result<devices::Measurements, DeviceError> {
        Ok(devices::Measurements {
            registers: vec![(7, [0x77; 32])],
            to_sign: b"to sign".to_vec(),
            approved: self.seen.lock().unwrap().approved,
        })
    }

    fn approve(&mut self, signature: &[u8]) -> Result<devices::Measurements, DeviceError> {
        if signature != b"signed" {
            return Err(DeviceError::NotApproved {
                reason: "it is wrong".to_owned(),
                advice: "sign it again",
            });
        }
        self.seen.lock().unwrap().approved = true;
        self.measurements()
    }
}

fn read(device: &str) -> ReadMeasurements {
    ReadMeasurements {
        device: device.to_owned(),
    }
}

fn approve(device: &str, signature: &[u8]) -> ApproveMeasurements {
    ApproveMeasurements {
        device: device.to_owned(),
        signature: Bytes(signature.to_vec()),
    }
}

#[tokio::test]
async fn an_approval_is_on_record_before_it_is_given() {
    let bench = Bench::new();
    let measured = |approved| Measurements {
        registers: vec![(7, Bytes(vec![0x77; 32]))],
        to_sign: Bytes(b"to sign".to_vec()),
        approved,
    };
    let before = bench.records().len();
    assert_eq!(bench.serve(read("token")).await.unwrap(), measured(false));
    assert_eq!(bench.records().len(), before, "to look leaves no record");

    let refused = bench.serve(approve("token", b"wrong")).await;
    assert_eq!(code(refused), FailureCode::BadRequest);
    assert!(bench.record("ApproveMeasurements").is_refusal());
    let approved = bench.serve(approve("token", b"signed")).await.unwrap();
    assert_eq!(approved, measured(true));
    let records = bench.records();
    let [.., offered, served] = records.as_slice() else {
        panic!("{records:?}")
    };
    let AuditOutcome::Noted { note } = &offered.outcome else {
        panic!("{offered:?}")
    };
    assert!(
        note.contains(&format!("PCR 7 {}", "77".repeat(32))),
        "{note}"
    );
    assert_eq!(
        (&*offered.action, &*served.action),
        ("OfferApproval", "ApproveMeasurements")
    );
    assert!(!served.is_refusal());
    for record in [offered, served] {
        assert_eq!(record.device.as_deref(), Some("token"));
        assert_eq!(record.caller.as_ref().unwrap().owner.uid, 0);
        let signed: [u8; 32] = Sha256::digest(b"to sign").into();
        assert_eq!(record.content, Some(signed));
    }
}

#[tokio::test]
async fn what_cannot_be_approved_is_refused() {
    let bench = Bench::new();
    for (device, expected) in [
        ("software", FailureCode::Unsupported),
        ("nowhere", FailureCode::DeviceAbsent),
        ("gone", FailureCode::DeviceAbsent),
        ("\n", FailureCode::BadRequest),
    ] {
        let looked = bench.serve(read(device)).await;
        assert_eq!(code(looked), expected, "{device}");
        let approved = bench.serve(approve(device, b"signed")).await;
        assert_eq!(code(approved), expected, "{device}");
    }
    let long = vec![0; MAX_SIGNATURE + 1];
    let refused = bench.serve(approve("token", &long)).await;
    assert_eq!(code(refused), FailureCode::BadRequest);
    let mut records = bench.records();
    records.retain(|record| record.action == "OfferApproval");
    assert_eq!(records.len(), 0);
}

#[tokio::test]
async fn measurements_are_an_administrators() {
    let bench = Bench::new();
    let uid = alice().uid;
    let looked = bench.serve_for(uid, read("token")).await;
    assert_eq!(code(looked), FailureCode::Denied);
    let approved = bench.serve_for(uid, approve("token", b"signed")).await;
    assert_eq!(code(approved), FailureCode::Denied);
    assert!(!bench.seen.lock().unwrap().approved);
}
