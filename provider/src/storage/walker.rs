//! Finds handles in anything that serialises.
//!
//! OpenMLS hands its records over as generic `Serialize` values of types that it
//! does not publish, and the inner storage's codec is the app's: what a record
//! holds can only be seen by walking through it as a serialiser would. Private
//! keys arrive as sequences of `u8`; one that is exactly one handle, below a
//! struct field for private keys, is one. Elsewhere stands what other members
//! chose (extensions, credentials, proposals of a pending commit): bytes that
//! only look like a handle must not be claimed.
//!
//! Private keys of the software kind, and other secrets, pass through here. What
//! is kept of them is at most the buffer below, which is wiped.

use std::fmt::Display;

use mlskeyd_protocol::v1::{Handle, KeyId};
use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use zeroize::Zeroizing;

/// Longest run of bytes that is looked at, in bytes: the longest byte string
/// that names a record (`mlskeyd_protocol::limits::MAX_GROUP_ID`).
const MAX_RUN: usize = mlskeyd_protocol::limits::MAX_GROUP_ID;

/// Most handles that are reported of one value; more than one claim may name, so
/// that too many are seen to be too many.
const MAX_HANDLES: usize = mlskeyd_protocol::limits::MAX_CLAIM_KEYS + 1;

/// The struct fields of OpenMLS below which a private key stands that may be in
/// custody: those of a key pair and of a KeyPackage bundle. Others cannot name
/// the fields, only fill them.
const PRIVATE_KEYS: [&str; 3] = ["private_key", super::INIT_KEY, super::LEAF_KEY];

/// A handle and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The key that it names.
    pub(super) key: KeyId,
    /// The outermost struct field that it stands in, if any.
    pub(super) field: Option<&'static str>,
}

/// What a walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// The handles, in order.
    pub(super) handles: Vec<Found>,
    /// The name of the unit variant that the value itself is, if it is one.
    pub(super) unit_variant: Option<&'static str>,
    /// Does a KeyPackage's extension list say that it is of last resort?
    pub(super) last_resort: bool,
}

impl Findings {
    /// The keys that the handles name, sorted, each once.
    pub(super) fn keys(&self) -> Vec<KeyId> {
        let mut keys: Vec<_> = self.handles.iter().map(|found| found.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The key whose handle stands in this outermost field.
    pub(super) fn key_in(&self, field: &str) -> Option<KeyId> {
        self.handles
            .iter()
            .find(|found| found.field == Some(field))
            .map(|found| found.key)
    }
}

/// The value's own `Serialize` failed.
#[derive(Debug, thiserror::Error)]
#[error("the value does not serialise")]
pub(super) struct NotSerialisable;

impl serde::ser::Error for NotSerialisable {
    // The message may quote the value, so it is not kept.
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

/// Walks a record's value.
pub(super) fn find_handles<T: Serialize + ?Sized>(value: &T) -> Result<Findings, NotSerialisable> {
    let mut walker = Walker::new(Wanted::Handles);
    value.serialize(&mut walker)?;
    Ok(walker.findings)
}

/// The first run of bytes in a value, if there is one of at most 1024 bytes:
/// what a storage key (a group id, a reference, a public key) is made of.
pub(super) fn first_bytes<T: Serialize + ?Sized>(value: &T) -> Option<Vec<u8>> {
    wanted(value, Wanted::Bytes(&[])).bytes
}

/// The first run of bytes at this path of struct fields: the fields that stand
/// around it must end with the path.
pub(super) fn bytes_at<T: Serialize + ?Sized>(
    value: &T,
    path: &'static [&'static str],
) -> Option<Vec<u8>> {
    wanted(value, Wanted::Bytes(path)).bytes
}

/// The first `u64` in a value: what a group's epoch is made of.
pub(super) fn first_number<T: Serialize + ?Sized>(value: &T) -> Option<u64> {
    wanted(value, Wanted::Number).number
}

/// A key that does not serialise names no record: the walk ends where it fails,
/// and what was found before does not count.
fn wanted<T: Serialize + ?Sized>(value: &T, wanted: Wanted) -> Walker {
    let mut walker = Walker::new(wanted);
    if value.serialize(&mut walker).is_err() {
        walker.bytes = None;
        walker.number = None;
    }
    walker
}

/// What a walk looks for.
#[derive(Clone, Copy)]
enum Wanted {
    Handles,
    /// Below this path of struct fields.
    Bytes(&'static [&'static str]),
    Number,
}

struct Walker {
    wanted: Wanted,
    findings: Findings,
    bytes: Option<Vec<u8>>,
    number: Option<u64>,
    /// The struct fields around the present place, outermost first.
    fields: Vec<&'static str>,
    /// The `u8`s seen in a row; never grows beyond what it was made with, so
    /// that no copy of it is left behind.
    run: Zeroizing<Vec<u8>>,
    /// The run is longer than what is looked at.
    too_long: bool,
    /// How many values stand around the present place.
    depth: usize,
}

impl Walker {
    fn new(wanted: Wanted) -> Self {
        let capacity = match wanted {
            Wanted::Handles => Handle::LEN,
            Wanted::Bytes(_) => MAX_RUN,
            Wanted::Number => 0,
        };
        Self {
            wanted,
            findings: Findings::default(),
            bytes: None,
            number: None,
            fields: Vec::new(),
            run: Zeroizing::new(Vec::with_capacity(capacity)),
            too_long: false,
            depth: 0,
        }
    }

    fn reset(&mut self) {
        self.run.clear();
        self.too_long = false;
    }

    fn byte(&mut self, byte: u8) {
        if self.run.len() < self.run.capacity() {
            self.run.push(byte);
        } else {
            self.too_long = true;
        }
    }

    /// A run of bytes is complete.
    fn end_run(&mut self) {
        if !self.too_long {
            match self.wanted {
                Wanted::Handles => self.handle(),
                Wanted::Bytes(path) => self.wanted_bytes(path),
                Wanted::Number => {}
            }
        }
        self.reset();
    }

    fn handle(&mut self) {
        let private = self.fields.iter().any(|field| PRIVATE_KEYS.contains(field));
        if private
            && let Some(handle) = Handle::from_bytes(&self.run)
            && self.findings.handles.len() < MAX_HANDLES
        {
            let field = self.fields.first().copied();
            self.findings.handles.push(Found {
                key: handle.key(),
                field,
            });
        }
    }

    /// Only what was asked for leaves the buffer.
    fn wanted_bytes(&mut self, path: &[&str]) {
        // A VLBytes names its own parts below the path.
        let at_path =
            path.is_empty() || self.fields.windows(path.len()).any(|fields| fields == path);
        if at_path && self.bytes.is_none() {
            self.bytes = Some(self.run.to_vec());
        }
    }

    fn variant(&mut self, name: &'static str, variant: &'static str) {
        // Capabilities name the extension type too, a leaf has extensions of its
        // own: only the KeyPackage's list decides.
        if name == "Extension"
            && variant == "LastResort"
            && self
                .fields
                .starts_with(&["key_package", "payload", "extensions"])
        {
            self.findings.last_resort = true;
        }
    }

    fn nested<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotSerialisable> {
        self.depth = self.depth.saturating_add(1);
        let result = value.serialize(&mut *self);
        self.depth = self.depth.saturating_sub(1);
        result
    }

    fn field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), NotSerialisable> {
        self.reset();
        self.fields.push(name);
        let result = self.nested(value);
        self.fields.pop();
        result
    }

    /// The end of anything but a sequence of bytes.
    fn end_other(&mut self) -> Result<(), NotSerialisable> {
        self.reset();
        Ok(())
    }

    /// The end of a sequence that may have been bytes.
    fn end_sequence(&mut self) -> Result<(), NotSerialisable> {
        self.end_run();
        Ok(())
    }
}

/// Scalars other than `u8`: no part of a run.
macro_rules! scalars {
    ($($method:ident: $type:ty),* $(,)?) => {
        $(fn $method(self, _: $type) -> Result<(), NotSerialisable> {
            self.end_other()
        })*
    };
}

impl Serializer for &mut Walker {
    type Ok = ();
    type Error = NotSerialisable;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    scalars! {
        serialize_bool: bool, serialize_char: char, serialize_str: &str,
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u16: u16, serialize_u32: u32,
        serialize_f32: f32, serialize_f64: f64,
    }

    fn serialize_u8(self, byte: u8) -> Result<(), NotSerialisable> {
        self.byte(byte);
        Ok(())
    }

    fn serialize_u64(self, number: u64) -> Result<(), NotSerialisable> {
        if matches!(self.wanted, Wanted::Number) && self.number.is_none() {
            self.number = Some(number);
        }
        self.end_other()
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), NotSerialisable> {
        self.reset();
        // One more than fits shows that it does not fit.
        for byte in bytes.iter().take(self.run.capacity().saturating_add(1)) {
            self.byte(*byte);
        }
        self.end_sequence()
    }

    fn serialize_none(self) -> Result<(), NotSerialisable> {
        self.end_other()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotSerialisable> {
        self.reset();
        self.nested(value)
    }

    fn serialize_unit(self) -> Result<(), NotSerialisable> {
        self.end_other()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), NotSerialisable> {
        self.end_other()
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), NotSerialisable> {
        if self.depth == 0 {
            self.findings.unit_variant = Some(variant);
        }
        self.variant(name, variant);
        self.end_other()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotSerialisable> {
        self.reset();
        self.nested(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), NotSerialisable> {
        self.reset();
        self.variant(name, variant);
        self.nested(value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, NotSerialisable> {
        self.reset();
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, NotSerialisable> {
        self.reset();
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, NotSerialisable> {
        self.reset();
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, NotSerialisable> {
        self.reset();
        self.variant(name, variant);
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, NotSerialisable> {
        self.reset();
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, NotSerialisable> {
        self.reset();
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, NotSerialisable> {
        self.reset();
        self.variant(name, variant);
        Ok(self)
    }

    // OpenMLS's types do not ask; JSON, the usual codec, is readable.
    fn is_human_readable(&self) -> bool {
        true
    }
}

/// Lists whose elements may be bytes.
macro_rules! lists {
    ($($trait:ident::$element:ident),* $(,)?) => {
        $(impl $trait for &mut Walker {
            type Ok = ();
            type Error = NotSerialisable;
            fn $element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotSerialisable> {
                self.nested(value)
            }
            fn end(self) -> Result<(), NotSerialisable> {
                self.end_sequence()
            }
        })*
    };
}

lists! {
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
}

/// Groups of named fields.
macro_rules! structs {
    ($($trait:ident),* $(,)?) => {
        $(impl $trait for &mut Walker {
            type Ok = ();
            type Error = NotSerialisable;
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), NotSerialisable> {
                self.field(name, value)
            }
            fn end(self) -> Result<(), NotSerialisable> {
                self.end_other()
            }
        })*
    };
}

structs!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for &mut Walker {
    type Ok = ();
    type Error = NotSerialisable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotSerialisable> {
        self.reset();
        self.nested(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotSerialisable> {
        self.reset();
        self.nested(value)
    }

    fn end(self) -> Result<(), NotSerialisable> {
        self.end_other()
    }
}
