//! The command line.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand};
use jiff::Timestamp;
use mlskeyd_protocol::v1::{Bytes, KeyId, Owner, SignatureScheme, Tier};

use super::certificates::{CredentialArgs, CsrArgs, ImportArgs};
use crate::attest::is_nonce;
use crate::config::parse_duration;
#[cfg(feature = "yubikey")]
use crate::config::{NoSlot, Slot};
use crate::freeze_target::{TargetCommand, owner};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  the daemon cannot be reached, or its version does not fit
  4  denied
  5  the device, or the key, was unlocked already: the PIN was not tried
  6  attestation: the evidence is refused
  7  attestation: the AK is not bound to this TPM

Only root and the daemon's own user are served. `attest challenge` and `attest
verify` are for whoever trusts neither: they need no daemon and no device, and
neither do `policy check`, `policy manifest`, `policy test` and `policy replay`.";

const JSON: &str = "\
JSON (with --json; fields are only ever added):
  OWNER    {\"uid\", \"app\"}
  DEVICE   {\"name\", \"kind\", \"state\": \"absent|locked|ready|failed\", \"detail\": text or null,
            \"default\", \"hpke_tier\": \"hardware|sealed\" or null, as configured,
            \"facts\": {NAME: text}, such as \"serial\", as last seen,
            \"counts\": {NAME: {\"used\": number or null if not counted,
                              \"peak\": number or null if not kept, \"most\"}},
            \"offers\": [{\"algorithm\", \"tier\": \"hardware|sealed|software\", \"how\": text}],
            \"suites\": [{\"suite\", \"tier\": as above where an app names none, or null
                        if not possible, \"why\": [text]}]}
  status          {\"version\", \"pid\", \"uptime_seconds\", \"connections\", \"keys\",
                   \"read_only\": text or null, \"audit_sequence\",
                   \"policies\": as of policy reload, \"devices\": [DEVICE]}
  devices list    [DEVICE]
  devices accept  {\"device\": DEVICE, \"serial\", \"before\": text or null}
  devices measurements, devices approve
                  {\"device\", \"registers\": [{\"pcr\", \"sha256\": hex}],
                   \"to_sign\": hex, \"approved\"}
  IDENTITY {\"owner\": OWNER, \"name\", \"credential\": {\"basic\": hex} or {\"x509\": [hex]},
            \"certificate_ends\": seconds or null,
            \"key\", \"algorithm\", \"public_key\": hex, \"device\", \"tier\",
            \"pin\": \"none|locked|unlocked\": of the key's own PIN,
            \"retiring\": [{\"key\", \"public_key\": hex, \"device\", \"tier\", \"pin\",
                          \"ends\": as of a key}]}
  identities list    [IDENTITY]
  identities create  IDENTITY
  identities unlock  IDENTITY and \"pin_tried\"
  identities lock    IDENTITY
  identities rotate  IDENTITY
  identities csr     {\"key\", \"request\": PEM}
  identities import, identities credential  IDENTITY
  identities adopt   IDENTITY
  freeze, thaw, frozen
                  [{\"target\": text, \"reason\": text}]: what is frozen then
  guard reset     {\"epoch\": the newest one that was signed in}
  guard restored  {\"restored\": true}
  lock            DEVICE
  policy check    {\"good\", \"policies\": number, \"problems\": [{\"file\", \"line\": 0 if it is the
                    whole, \"level\": \"error|lint\", \"message\"}]}
                   and \"manifest\": null if there is none, or {\"serial\": number or null,
                    \"signer\": text or null if that was not looked at,
                    \"expires\": seconds since 1970 or null, \"why\": text or null}
  policy manifest {\"manifest\": path, \"serial\", \"policy_files\": number, \"sign\": text}
  policy explain  [{\"time\": seconds since 1970, \"action\",
                    \"refused\": {\"policy\", \"reason\"} or null, \"by_rule\",
                    \"policies\": [text]: that refuse it now, \"permitted_by\": text or null,
                    \"facts\": object or null}]
  policy replay   {\"decisions\", \"changed\", \"changes\": [{\"action\", \"refused_by\",
                    \"would_be_refused_by\": text or null, \"count\", \"first\": record}]}
                   with --record {\"record\", \"action\", \"policies\": [text]: that refuse it,
                    \"permitted_by\": text or null, \"facts\": object}
  policy reload   {\"policies\": number,
                   \"signed\": null, or {\"serial\", \"signer\": text,
                              \"expires\": seconds since 1970 or null},
                   \"warnings\": [text]}
  policy test     {\"passed\", \"failed\", \"cases\": [{\"name\", \"passed\", \"why\": text or null}]}
  unlock          DEVICE and \"pin_tried\"
  keys list       [{\"owner\": OWNER, \"id\", \"algorithm\", \"purpose\": \"signature|hpke|init|leaf\",
                    \"state\": \"active|idle|retiring|missing|destroyed\", \"public_key\": hex,
                    \"device\", \"tier\", \"created\": seconds since 1970,
                    \"ends\": seconds since 1970 or null: of a retiring key, at the earliest,
                    \"adopted\", \"pin\": as of an identity, \"identity\": text or null, \"claims\"}]
  keys sweep      {\"destroyed\", \"waiting\", \"stuck\"}
  keys reassign   {\"from\": OWNER, \"to\": OWNER, \"identities\": [name], \"storages\": [name],
                   \"signature_keys\", \"hpke_keys\": how many that are not destroyed}
  storage list    [{\"owner\": OWNER, \"name\", \"attached\", \"records\", \"keys\",
                    \"last_attached\": seconds since 1970}]
  storage forget  {\"records\"}
  provision yubikey  {\"serial\", \"firmware\",
                      \"keys\": [{\"slot\", \"purpose\": \"agreement|signature|consent\",
                                \"public_key\": hex, \"was_there\"}]}
  attest evidence, attest activate   a document: docs/attestation.md
  attest challenge
                  {\"challenge\": path, \"secret\": path, \"evidence\": its digest in hex,
                   \"claims\": as in the evidence}; if it is refused, as verify
  attest verify   {\"verdict\": \"accepted|ak-not-bound|refused\", \"reason\": code or null,
                   \"detail\": text, \"evidence\": its digest in hex, or null,
                   \"ek_certificate\": its SHA-256 in hex, or null if it is of no TPM,
                   \"yubikey\": null if it is of none, or {\"serial\", \"firmware\": text,
                               \"form_factor\": text or null, \"slot\": in hex,
                               \"pin_policy\": \"never|once|always|match-once|match-always\",
                               \"touch_policy\": \"never|always|cached\",
                               \"f9_certificate\": its SHA-256 in hex},
                   \"claims\": as in the evidence, or null if it is refused}";

/// Shows what mlskeyd keeps, and looks after it.
#[derive(Debug, Parser)]
#[command(name = "mlskeyctl", version, after_help = EXIT_CODES,
          after_long_help = format!("{JSON}\n\n{EXIT_CODES}"))]
pub(super) struct Args {
    /// The daemon's socket [default: $MLSKEYD_SOCKET, else /run/mlskeyd/socket if
    /// that is there, else $XDG_RUNTIME_DIR/mlskeyd/socket if that is there]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Print JSON (--help describes it)
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The daemon at a glance
    Status,
    /// The devices, and what they offer
    Devices {
        #[command(subcommand)]
        command: Option<DevicesCommand>,
    },
    /// The identities, and which keys sign for them
    Identities {
        #[command(subcommand)]
        command: Option<IdentitiesCommand>,
    },
    /// The keys in custody
    Keys {
        /// Show destroyed keys, too
        #[arg(long)]
        all: bool,
        #[command(subcommand)]
        command: Option<KeysCommand>,
    },
    /// Unlock a device with its PIN
    ///
    /// The PIN is asked for on the terminal, or is a line of standard input if that
    /// is no terminal. It is tried once; what waits for the device then goes on. A
    /// device that is unlocked already does not look at it: exit code 5.
    Unlock {
        /// The device's name
        device: String,
        /// Try the PIN even if one more wrong one would lock the device for good
        #[arg(long)]
        last_try: bool,
    },
    /// Ask the person of this login session for PINs, when requests wait for them
    ///
    /// Runs until it is ended, as a service of the session, for its user alone: anybody
    /// may. Pinentry asks for the PIN, once for each time that a device waits for it.
    /// What is unlocked so is unlocked for this user's requests alone, and locked again
    /// when this command ends.
    Agent {
        /// The program that asks the person
        #[arg(long, value_name = "PROGRAM", default_value = "pinentry")]
        pinentry: PathBuf,
    },
    /// The company's policies
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// What the guard remembers of groups
    Guard {
        #[command(subcommand)]
        command: GuardCommand,
    },
    /// Have nothing signed, opened or made for something, at once, until it is thawed
    Freeze {
        #[command(subcommand)]
        target: TargetCommand,
        /// Why: whoever is refused reads it
        #[arg(long, global = true, default_value = "")]
        reason: String,
    },
    /// Thaw what was frozen, by the same words
    Thaw {
        #[command(subcommand)]
        target: TargetCommand,
    },
    /// What is frozen, and why
    Frozen,
    /// Lock a device: its PIN is forgotten, and asked for again
    ///
    /// Also a PIN that the configuration names is not used again until somebody unlocks
    /// the device, or the daemon starts again.
    Lock {
        /// The device's name
        device: String,
    },
    /// Get a device ready that is in front of you; takes no daemon
    #[cfg(feature = "yubikey")]
    Provision {
        #[command(subcommand)]
        command: ProvisionCommand,
    },
    /// Evidence that keys are in hardware, for whoever does not trust this machine
    ///
    /// The verifier chooses a nonce; the machine makes evidence with it; the verifier
    /// makes a challenge for that; the machine answers it; the verifier judges.
    Attest {
        #[command(subcommand)]
        command: AttestCommand,
    },
    /// The apps' storages, whose records say which keys are needed
    Storage {
        #[command(subcommand)]
        command: Option<StorageCommand>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum DevicesCommand {
    /// List devices (the default)
    List,
    /// Make the token, or the TPM, that is there the device's own, in the place of the
    /// one that its keys are on
    ///
    /// A device works with the token that it first worked with, by its serial number,
    /// and tries no PIN on another. Once another one is accepted, the keys of the one
    /// before are missing, and what waits there to be destroyed counts as destroyed
    /// with it. The one before can be accepted again; what counted as destroyed stays
    /// on it.
    ///
    /// With a TPM it is final: all keys that the device had so far are lost for good,
    /// even if the TPM before is accepted again.
    Accept {
        /// The device's name
        device: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show what the machine has measured, to which keys of a TPM may be bound
    ///
    /// With --out also what the recovery key has to sign to approve that:
    /// `openssl dgst -sha256 -sign recovery-private.pem -out signature FILE`.
    Measurements {
        /// The device's name
        device: String,
        /// Where what is to be signed goes; it must not be there yet
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Approve what the machine has measured, with the recovery key's signature
    ///
    /// Keys of the device that were made with other measurements then work with these,
    /// too. That cannot be taken back: what ends it is another recovery key, and then
    /// new keys.
    Approve {
        /// The device's name
        device: String,
        /// The signature over what `devices measurements --out` wrote, in DER
        #[arg(long, value_name = "FILE")]
        signature: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum IdentitiesCommand {
    /// List identities (the default)
    List,
    /// Make an identity for an app, with a new signature key
    ///
    /// The app finds it under its name if it asks for the same credential and
    /// signature scheme. With --pin the key has a PIN of its own, which a TPM keeps:
    /// it signs only once it was unlocked, and the TPM counts wrong PINs.
    Create {
        /// Who is to own the identity: uid/app, as in 1000/default
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// The device of the key [default: the configured one]
        #[arg(long)]
        device: Option<String>,
        /// The tier of the key [default: the highest that the device has]
        #[arg(long, value_parser = tier())]
        tier: Option<Tier>,
        /// What the key signs
        #[arg(long, value_parser = scheme(), default_value = "ed25519")]
        scheme: SignatureScheme,
        /// The basic credential to pin [default: the identity's name]
        #[arg(long, value_name = "TEXT")]
        credential: Option<String>,
        /// Give the key a PIN: asked for twice on the terminal, or a line of standard
        /// input if that is no terminal
        #[arg(long)]
        pin: bool,
    },
    /// Unlock an identity's signature key with its PIN
    ///
    /// The PIN is asked for on the terminal, or is a line of standard input if that
    /// is no terminal. It is tried once; what waits for the key then goes on. The key
    /// stays unlocked until `identities lock`, or until the daemon ends. One that is
    /// unlocked already does not look at the PIN: exit code 5.
    Unlock {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// A key of the identity's that retires [default: the current one]
        #[arg(long, value_parser = key_id)]
        key: Option<KeyId>,
        /// Try the PIN even if one more wrong one would lock the device
        #[arg(long)]
        last_try: bool,
    },
    /// Lock an identity's signature keys that have a PIN
    Lock {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
    },
    /// Make a new signature key for an identity: the one before retires
    ///
    /// The app gets the new key when it asks for the identity again, and has to
    /// bring it into each of its groups by a commit. Until the grace is over the
    /// old key signs, too; then it is destroyed, and a group that still knows it
    /// has to be joined anew. Name and credential stay. Works also if the device
    /// of the old key is gone: name another one.
    Rotate {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// The device of the new key [default: the old key's]
        #[arg(long)]
        device: Option<String>,
        /// The tier of the new key [default: the old key's, or a higher one on
        /// another device]
        #[arg(long, value_parser = tier())]
        tier: Option<Tier>,
        /// For how long the old key still signs, as in 0s, 12h or 30d [default: as
        /// the daemon's configuration says, 30d]
        #[arg(long, value_name = "DURATION", value_parser = grace)]
        grace: Option<u64>,
        /// Give the new key a PIN, asked for as by `identities create`; the old key
        /// keeps the one that it has
        #[arg(long)]
        pin: bool,
        /// Give the new key no PIN even if the old key has one
        #[arg(long, conflicts_with = "pin")]
        no_pin: bool,
    },
    /// Have an identity's key sign a request for a certificate (PKCS#10), as PEM
    ///
    /// The daemon builds it, and signs nothing else for it.
    Csr(CsrArgs),
    /// Pin the certificate that was issued as an identity's credential
    ///
    /// It has to lead to an issuer that the configuration pins, to be for the identity's own
    /// key, or for the new one that was asked for last, and to have only names that the user
    /// may have. The app takes it into its groups with its next commit.
    Import(ImportArgs),
    /// Pin another basic credential to an identity
    Credential(CredentialArgs),
    /// Make an identity whose signature key is on a device already
    ///
    /// The device's own object is not changed. When the key ends here, as by
    /// `identities rotate`, it is forgotten, and stays on the device.
    Adopt {
        /// Who is to own the identity: uid/app, as in 1000/default
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// The device
        #[arg(long)]
        device: String,
        /// The key's name on the device
        #[arg(long)]
        label: String,
        /// What the key signs
        #[arg(long, value_parser = scheme(), default_value = "ed25519")]
        scheme: SignatureScheme,
        /// The basic credential to pin [default: the identity's name]
        #[arg(long, value_name = "TEXT")]
        credential: Option<String>,
    },
}

#[cfg(feature = "yubikey")]
#[derive(Debug, Subcommand)]
pub(super) enum ProvisionCommand {
    /// Give a YubiKey a PIN, a PUK and a management key of its own, and the keys that the
    /// daemon works with
    ///
    /// What is asked for, on the terminal or as lines of standard input: the new PIN and
    /// the new PUK if the YubiKey has those from the factory, each twice on a terminal;
    /// else its PIN. What is done already stays as it is, so this may be repeated. A
    /// slot that has another key is never touched.
    ///
    /// Signature keys are then given to identities by `identities adopt --label SLOT`.
    Yubikey {
        /// The YubiKey's serial number [default: the only one that is there]
        #[arg(long)]
        serial: Option<u32>,
        /// The slot of the key agreement key, under which HPKE keys are sealed
        #[arg(long, value_name = "SLOT", default_value = "9d")]
        agreement: Slot,
        /// Slots of signature keys, as in 9a:p256,82:p384; ed25519 takes firmware 5.7
        #[arg(long, value_name = "SLOT:SCHEME", value_delimiter = ',', value_parser = slot_of_scheme)]
        signature: Vec<(Slot, SignatureScheme)>,
        /// The slot of a consent key, which is touched for each use
        #[arg(long, value_name = "SLOT")]
        consent: Option<Slot>,
        /// Keep the management key in this file, which must not be there yet if the
        /// YubiKey has the one from the factory [default: the YubiKey keeps it, under
        /// its PIN]
        #[arg(long, value_name = "FILE")]
        management_key_file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// List keys (the default)
    List {
        /// Show destroyed keys, too
        #[arg(long)]
        all: bool,
    },
    /// Destroy now what is due
    ///
    /// That goes on portion by portion, and shows on the terminal how far it has
    /// come. Whoever ends it leaves the rest for the next one, or for the daemon.
    Sweep,
    /// Give what an owner has to another one: identities, storages, and their keys
    ///
    /// For an app that got a name, or another one, in the configuration. All goes at once,
    /// or nothing: if the new owner has an identity or a storage of the same name, or
    /// something of it is frozen, nothing is changed. Apps need not be closed; those of
    /// the owner before lose what is not theirs any more.
    Reassign(ReassignArgs),
}

#[derive(Debug, ClapArgs)]
pub(super) struct ReassignArgs {
    /// Whose it is: uid/app, as in 1000/default
    #[arg(value_parser = owner)]
    pub(super) from: Owner,
    /// Whose it is to be: uid/app, as in 1000/wire
    #[arg(value_parser = owner)]
    pub(super) to: Owner,
    /// Only this identity, with its signature keys and what the guard remembers of it; may
    /// be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) identity: Vec<String>,
    /// Only this storage, with the keys that its records name; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) storage: Vec<String>,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum AttestCommand {
    /// The machine: make evidence that an identity's signature key is in hardware
    Evidence {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        identity: String,
        /// What the verifier chose: 16 to 64 bytes
        #[arg(long, value_name = "HEX", value_parser = nonce)]
        nonce: Nonce,
    },
    /// The verifier: make a challenge for the device that evidence came from
    ///
    /// Evidence of a YubiKey needs none: `attest verify` judges it as it is.
    Challenge {
        /// The evidence
        evidence: PathBuf,
        /// Certificates of the makers that are trusted, in PEM
        #[arg(long, value_name = "PEM")]
        roots: PathBuf,
        /// Where the challenge goes; it must not be there yet
        #[arg(long, value_name = "FILE")]
        out_challenge: PathBuf,
        /// Where the secret goes that the answer is checked with; it must not be there
        /// yet, and stays with the verifier
        #[arg(long, value_name = "FILE")]
        out_secret: PathBuf,
    },
    /// The machine: answer a challenge
    Activate {
        /// The device that the evidence came from
        device: String,
        /// The challenge
        challenge: PathBuf,
    },
    /// The verifier: judge evidence
    ///
    /// Of evidence of a TPM: without the response to a challenge it is not shown that the
    /// attestation key is in a TPM at all, so the verdict is no better than `ak-not-bound`.
    Verify {
        /// The evidence
        evidence: PathBuf,
        /// Certificates of the makers that are trusted, in PEM
        #[arg(long, value_name = "PEM")]
        roots: PathBuf,
        /// What the verifier chose
        #[arg(long, value_name = "HEX", value_parser = nonce)]
        nonce: Nonce,
        /// The secret of the challenge
        #[arg(long, value_name = "FILE", requires = "response")]
        secret: Option<PathBuf>,
        /// The answer to the challenge
        #[arg(long, value_name = "FILE", requires = "secret")]
        response: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum StorageCommand {
    /// List storages (the default)
    List,
    /// Drop all claims of a storage whose database is gone: keys that nothing
    /// else claims are destroyed when their grace is over
    Forget {
        /// As `storage list` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The storage's name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn tier() -> impl TypedValueParser<Value = Tier> {
    PossibleValuesParser::new(["hardware", "sealed", "software"]).map(|text| match text.as_str() {
        "hardware" => Tier::Hardware,
        "sealed" => Tier::Sealed,
        _ => Tier::Software,
    })
}

#[cfg(feature = "yubikey")]
fn slot_of_scheme(text: &str) -> Result<(Slot, SignatureScheme), String> {
    let (slot, scheme) = text
        .split_once(':')
        .ok_or("a slot, a colon, a scheme, as in 9a:p256")?;
    let slot = slot.parse().map_err(|error: NoSlot| error.to_string())?;
    let scheme = match scheme {
        "ed25519" => SignatureScheme::Ed25519,
        "p256" => SignatureScheme::EcdsaP256Sha256,
        "p384" => SignatureScheme::EcdsaP384Sha384,
        _ => return Err("a scheme is ed25519, p256 or p384".to_owned()),
    };
    Ok((slot, scheme))
}

fn scheme() -> impl TypedValueParser<Value = SignatureScheme> {
    PossibleValuesParser::new(["ed25519", "p256", "p384"]).map(|text| match text.as_str() {
        "ed25519" => SignatureScheme::Ed25519,
        "p384" => SignatureScheme::EcdsaP384Sha384,
        _ => SignatureScheme::EcdsaP256Sha256,
    })
}

/// Higher numbers TOML does not have.
const MAX_SERIAL: u64 = i64::MAX.unsigned_abs();

fn moment(text: &str) -> Result<Timestamp, String> {
    let day = format!("{text}T00:00:00Z");
    let moment = text.parse().or_else(|_| day.parse());
    moment.map_err(|_| "a date is as in 2027-01-01, or 2027-01-01T08:00:00Z".to_owned())
}

pub(super) fn grace(text: &str) -> Result<u64, String> {
    let duration = parse_duration(text).ok_or(
        "a duration is a number and a unit, as in 30s, 15m, 24h or 90d (10 years at most)",
    )?;
    Ok(duration.as_secs())
}

/// What a verifier chose. (Of bytes alone clap would make a list of values.)
#[derive(Clone, Debug)]
pub(super) struct Nonce(pub(super) Vec<u8>);

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Say what is wrong with policies, or looks so; takes no daemon
    ///
    /// Errors have the daemon refuse the whole set, and keep that which is in force.
    Check {
        /// The company's policies
        #[arg(default_value = "/etc/mlskeyd/policies.d")]
        dir: PathBuf,
        /// The vendor's policies; those that mlskeyctl was built with if it is not there
        #[arg(long, default_value = "/usr/lib/mlskeyd/policies.d")]
        vendor: PathBuf,
        /// Public keys that may have signed the directory's manifest, each a line, as in
        /// *.pub [default: the `signers` of --config]
        #[arg(long, value_name = "FILE")]
        signer: Option<PathBuf>,
        /// The daemon's configuration [default: /etc/mlskeyd/mlskeyd.toml, if that can be
        /// read]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Write the manifest of a set of policies, to be signed; takes no daemon
    ///
    /// It goes to manifest.toml in the directory, and what signs it is printed: a daemon
    /// whose configuration names `signers` takes the set then, if the serial is higher than
    /// that of each set that it had so far.
    Manifest {
        /// The company's policies
        dir: PathBuf,
        /// A number that grows with each set that is rolled out
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX_SERIAL))]
        serial: u64,
        /// When a newer set is to be there, as in 2027-01-01 or 2027-01-01T08:00:00Z: after
        /// that it stays in force, and the daemon warns
        #[arg(long, value_name = "DATE", value_parser = moment)]
        expires: Option<Timestamp>,
    },
    /// Ask policies what their cases say; takes no daemon
    ///
    /// The last line is `N passed, N failed`.
    Test {
        /// Policies of the company (*.cedar), and cases (*.toml); without it, the
        /// vendor's policies and their own cases
        dir: Option<PathBuf>,
        /// The vendor's policies; those that mlskeyctl was built with if it is not there
        #[arg(long, default_value = "/usr/lib/mlskeyd/policies.d")]
        vendor: PathBuf,
    },
    /// Say of the last refusals what was refused, by which policies, and why
    ///
    /// And what would permit it: by the policies that are in force now. The facts are what
    /// policies knew of the request, as in a case; what is 0, false or empty is left out.
    Explain {
        /// All that are remembered, and not the last one alone
        #[arg(long)]
        all: bool,
        /// The request of this number in the audit log, whether it was refused or not
        #[arg(long, value_name = "NUMBER", conflicts_with = "all")]
        record: Option<u64>,
    },
    /// Say which decisions on record would be others by other policies; takes no daemon
    ///
    /// The last line is `N decisions, N would change`. Requests that were refused by a rule
    /// that no policy lifts, or that no policy was asked about, are left out.
    Replay {
        /// The audit log
        audit: PathBuf,
        /// The company's policies
        dir: PathBuf,
        /// The vendor's policies; those that mlskeyctl was built with if it is not there
        #[arg(long, default_value = "/usr/lib/mlskeyd/policies.d")]
        vendor: PathBuf,
        /// Explain this record alone: what was asked, and what these policies say to it
        #[arg(long, value_name = "NUMBER")]
        record: Option<u64>,
    },
    /// Have the daemon read its policies again
    ///
    /// If anything is wrong with them that is told, and those of before stay in force.
    Reload,
}

#[derive(Debug, Subcommand)]
pub(super) enum GuardCommand {
    /// Say that the state directory was put back from a copy
    ///
    /// The daemon finds out by itself if the registry alone was, by the audit log beside
    /// it; of a whole machine that was put back it cannot know. All groups of before are
    /// refused then until they are entered again, or reset.
    Restored,
    /// Have the guard forget what an identity signed in a group
    ///
    /// For an app whose storage was restored from a copy, if it is really to go on from
    /// there: it signs in whatever epoch it is in then. Entering the group again by an
    /// external commit takes no reset.
    Reset {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        identity: String,
        /// The MLS group id, in hexadecimal, as the records have it
        #[arg(value_parser = group)]
        group: Bytes,
    },
}

fn group(text: &str) -> Result<Bytes, String> {
    let decoded = hex::decode(text).map(Bytes);
    decoded.map_err(|_| "a group id is in hexadecimal digits".to_owned())
}

fn nonce(text: &str) -> Result<Nonce, String> {
    match hex::decode(text) {
        Ok(nonce) if is_nonce(&nonce) => Ok(Nonce(nonce)),
        _ => Err("a nonce is 16 to 64 bytes in hexadecimal digits".to_owned()),
    }
}

fn key_id(text: &str) -> Result<KeyId, String> {
    let mut id = [0; KeyId::LEN];
    hex::decode_to_slice(text, &mut id)
        .map_err(|_| format!("a key's name has {} hexadecimal digits", 2 * KeyId::LEN))?;
    Ok(KeyId::from_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
        let args = Args::parse_from(["mlskeyctl", "keys", "--json"]);
        assert!(
            args.json
                && matches!(
                    args.command,
                    Command::Keys {
                        all: false,
                        command: None
                    }
                )
        );
    }

    #[test]
    fn a_nonce_is_bytes_in_hexadecimal() {
        let given = |nonce: &str| {
            let evidence = [
                "mlskeyctl",
                "attest",
                "evidence",
                "0/app",
                "alice",
                "--nonce",
            ];
            Args::try_parse_from(evidence.iter().chain([&nonce]))
        };
        for right in ["00".repeat(16), "Ff".repeat(64)] {
            let Command::Attest {
                command: AttestCommand::Evidence { nonce, .. },
            } = given(&right).unwrap().command
            else {
                panic!("another command")
            };
            assert_eq!(nonce.0, hex::decode(right).unwrap());
        }
        for wrong in [
            "00".repeat(15),
            "00".repeat(65),
            "0".repeat(33),
            "x".repeat(32),
        ] {
            assert!(given(&wrong).is_err(), "{wrong}");
        }
    }
}
