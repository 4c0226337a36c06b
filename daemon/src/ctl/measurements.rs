//! What the machine has measured, and its approval.

use std::io::Write;
use std::path::Path;

use mlskeyd_protocol::client::{AdminClient, Call};
use mlskeyd_protocol::limits::MAX_SIGNATURE;
use mlskeyd_protocol::v1::{ApproveMeasurements, Bytes, Measurements, ReadMeasurements};
use serde_json::{Value, json};

use super::CtlError;
use super::files::{at, create, read};
use super::table::printable;

/// Shows them, and writes what is to be signed into a file.
pub(super) fn measurements(
    client: &AdminClient,
    device: &str,
    out: Option<&Path>,
    call: &Call<'_>,
) -> Result<(Value, String), CtlError> {
    let request = ReadMeasurements {
        device: device.to_owned(),
    };
    let measured = client.read_measurements(request, call)?;
    if let Some(path) = out {
        let written = create(path).and_then(|mut file| file.write_all(&measured.to_sign));
        written.map_err(|error| at(path, error))?;
    }
    Ok(shown(device, &measured))
}

/// Approves them by the signature in a file.
pub(super) fn approve(
    client: &AdminClient,
    device: &str,
    signature: &Path,
    call: &Call<'_>,
) -> Result<(Value, String), CtlError> {
    let request = ApproveMeasurements {
        device: device.to_owned(),
        signature: Bytes(read(signature, MAX_SIGNATURE)?),
    };
    let measured = client.approve_measurements(request, call)?;
    Ok(shown(device, &measured))
}

fn shown(device: &str, measured: &Measurements) -> (Value, String) {
    let registers = measured.registers.iter();
    let registers: Vec<_> = registers
        .map(|(pcr, value)| (pcr, hex::encode(&value.0)))
        .collect();
    let to_sign = hex::encode(&measured.to_sign.0);
    let lines = registers.iter();
    let lines: String = lines
        .map(|(pcr, value)| format!("PCR {pcr:<3} {value}\n"))
        .collect();
    let device_shown = printable(device);
    let verdict = if measured.approved {
        format!(
            "approved: all keys of device {device_shown} that name this recovery key work with them"
        )
    } else {
        format!(
            "not approved: on device {device_shown} only keys work that were made with them, or are bound to none"
        )
    };
    let text = format!("{lines}{verdict}\n");
    let registers = registers.iter();
    let registers: Vec<_> = registers
        .map(|(pcr, value)| json!({ "pcr": pcr, "sha256": value }))
        .collect();
    let json = json!({
        "device": device,
        "registers": registers,
        "to_sign": to_sign,
        "approved": measured.approved,
    });
    (json, text)
}
