//! The memory that the tests and the module share: counters and switches, each
//! an atomic number. All zero is a module that does nothing of its own.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use cryptoki_sys::{
    CK_FLAGS, CK_MECHANISM_TYPE, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED, CKM_AES_KEY_GEN,
    CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EC_MONTGOMERY_KEY_PAIR_GEN,
};

use crate::fault::{Fault, Function};

/// What is in the file.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Shared {
    slots: [Slot; Function::COUNT],
    /// Odd: the token is out. It grows with each time that it goes or comes.
    presence: AtomicU64,
    /// How often somebody else logged the token out.
    logouts: AtomicU64,
    pub(crate) pin_final_try: AtomicU64,
    pub(crate) pin_locked: AtomicU64,
    pub(crate) sessions_open: AtomicU64,
    pub(crate) sessions_peak: AtomicU64,
    pub(crate) finds: AtomicU64,
    pub(crate) objects: AtomicI64,
    /// 0: as many as the token allows.
    pub(crate) max_sessions: AtomicU64,
    pub(crate) without_curve25519: AtomicU64,
    pub(crate) without_unwrap_template: AtomicU64,
    pub(crate) without_aes: AtomicU64,
    pub(crate) delay_microseconds: AtomicU64,
}

/// One function.
#[repr(C)]
#[derive(Default)]
struct Slot {
    calls: AtomicU64,
    hits: AtomicU64,
    fault: AtomicU64,
    /// Calls to be skipped above calls to fail.
    plan: AtomicU64,
}

impl Shared {
    fn slot(&self, function: Function) -> Option<&Slot> {
        self.slots.get(function as usize)
    }

    pub(crate) fn arm(&self, function: Function, fault: Fault, after: u32, times: u32) {
        if let Some(slot) = self.slot(function) {
            slot.plan.store(0, Ordering::SeqCst);
            slot.fault.store(fault.to_bits(), Ordering::SeqCst);
            slot.plan.store(pack(after, times), Ordering::SeqCst);
        }
    }

    pub(crate) fn disarm(&self, function: Function) {
        if let Some(slot) = self.slot(function) {
            slot.plan.store(0, Ordering::SeqCst);
        }
    }

    pub(crate) fn count(&self, function: Function) {
        if let Some(slot) = self.slot(function) {
            slot.calls.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn calls(&self, function: Function) -> u64 {
        self.slot(function)
            .map_or(0, |slot| slot.calls.load(Ordering::SeqCst))
    }

    pub(crate) fn hits(&self) -> u64 {
        let of_each = self.slots.iter();
        of_each.map(|slot| slot.hits.load(Ordering::SeqCst)).sum()
    }

    pub(crate) fn hits_in(&self, function: Function) -> u64 {
        self.slot(function)
            .map_or(0, |slot| slot.hits.load(Ordering::SeqCst))
    }

    /// The fault of this call, if it is its turn.
    pub(crate) fn take_fault(&self, function: Function) -> Option<Fault> {
        let slot = self.slot(function)?;
        let before = slot
            .plan
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |plan| {
                let (after, times) = unpack(plan);
                match (after, times) {
                    (_, 0) => None,
                    (0, _) => Some(pack(0, times.saturating_sub(1))),
                    _ => Some(pack(after.saturating_sub(1), times)),
                }
            });
        let its_turn = before.is_ok_and(|plan| unpack(plan).0 == 0);
        let fault = its_turn.then(|| Fault::from_bits(slot.fault.load(Ordering::SeqCst)))??;
        slot.hits.fetch_add(1, Ordering::SeqCst);
        Some(fault)
    }

    /// Changes with each time that the token goes or comes.
    pub(crate) fn presence(&self) -> u64 {
        self.presence.load(Ordering::SeqCst)
    }

    pub(crate) const fn is_out(presence: u64) -> bool {
        presence & 1 == 1
    }

    /// Takes the token out, or puts it back, if it is not there already.
    pub(crate) fn set_out(&self, out: bool) {
        let presence = &self.presence;
        // Fails where nothing is to be done.
        let _ = presence.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
            (Self::is_out(now) != out).then(|| now.wrapping_add(1))
        });
    }

    /// Grows with each time that somebody else logs the token out.
    pub(crate) fn logouts(&self) -> u64 {
        self.logouts.load(Ordering::SeqCst)
    }

    pub(crate) fn log_out(&self) {
        self.logouts.fetch_add(1, Ordering::SeqCst);
    }

    /// What the token says of its user PIN.
    pub(crate) fn pin_flags(&self) -> CK_FLAGS {
        let shown = |switch: &AtomicU64, flag| match switch.load(Ordering::SeqCst) {
            0 => 0,
            _ => flag,
        };
        shown(&self.pin_final_try, CKF_USER_PIN_FINAL_TRY)
            | shown(&self.pin_locked, CKF_USER_PIN_LOCKED)
    }

    /// Is the token told to be without this mechanism?
    pub(crate) fn lacks(&self, mechanism: CK_MECHANISM_TYPE) -> bool {
        let switch = match mechanism {
            CKM_EC_EDWARDS_KEY_PAIR_GEN | CKM_EC_MONTGOMERY_KEY_PAIR_GEN => {
                &self.without_curve25519
            }
            CKM_AES_KEY_GEN => &self.without_aes,
            _ => return false,
        };
        switch.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_microseconds.load(Ordering::SeqCst))
    }
}

fn pack(after: u32, times: u32) -> u64 {
    u64::from(after) << u32::BITS | u64::from(times)
}

fn unpack(plan: u64) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits).unwrap_or(u32::MAX);
    (half(plan >> u32::BITS), half(plan & u64::from(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_comes_after_so_many_calls_and_so_many_times() {
        let shared = Shared::default();
        let fault = Fault::ErrorAfter(0x30);
        shared.arm(Function::Sign, fault, 2, 2);
        let taken: Vec<_> = (0..6).map(|_| shared.take_fault(Function::Sign)).collect();
        assert_eq!(taken, [None, None, Some(fault), Some(fault), None, None]);
        assert_eq!(shared.hits(), 2);
        assert_eq!(shared.hits_in(Function::Sign), 2);
        assert_eq!(shared.hits_in(Function::Login), 0);
        shared.arm(Function::Sign, Fault::Hang, 0, u32::MAX);
        shared.disarm(Function::Sign);
        assert_eq!(shared.take_fault(Function::Sign), None);
    }

    #[test]
    fn the_token_goes_and_comes_once() {
        let shared = Shared::default();
        let seen = [false, true, true, false, false, true].map(|out| {
            shared.set_out(out);
            shared.presence()
        });
        assert_eq!(seen, [0, 1, 1, 2, 2, 3]);
    }
}
