//! Each fault that software tokens never have, in the middle of each thing that
//! a token does, while eight apps use it.
//!
//! Whatever happens, each request succeeds or says clearly why not, and the same
//! request succeeds when the fault is over; nobody else notices; and the token
//! ends with exactly the keys that live.

mod app;
mod scene;

use mlskeyd_faulty_module::{
    CKR_DEVICE_MEMORY, CKR_DEVICE_REMOVED, CKR_SESSION_COUNT, CKR_TOKEN_NOT_PRESENT, Fault,
    Function,
};

use self::scene::Scene;

/// What goes wrong, and how often in a row.
#[derive(Clone, Copy)]
pub struct Trouble {
    pub fault: Fault,
    pub times: u32,
}

const DEVICE_REMOVED: Trouble = Trouble {
    fault: Fault::Removed(CKR_DEVICE_REMOVED),
    times: 1,
};
const TOKEN_NOT_PRESENT: Trouble = Trouble {
    fault: Fault::Removed(CKR_TOKEN_NOT_PRESENT),
    times: 1,
};
const SESSION_COUNT: Trouble = Trouble {
    fault: Fault::Error(CKR_SESSION_COUNT),
    times: 3,
};
const DEVICE_MEMORY: Trouble = Trouble {
    fault: Fault::Error(CKR_DEVICE_MEMORY),
    times: 3,
};
const HANG: Trouble = Trouble {
    fault: Fault::Hang,
    times: 2,
};
const CRASH: Trouble = Trouble {
    fault: Fault::Crash,
    times: 2,
};

fn play(trouble: Trouble, function: Function) {
    let mut scene = Scene::new();
    scene.have_trouble_under_load(|scene| scene.suffer(trouble, function, 3));
    scene.have_trouble_while_keys_die(trouble, function);
    scene.nothing_is_left_but_identities();
}

/// The same where a connection is made anew. The first session asks whether a
/// PIN is needed; if it is, the second logs in.
///
/// Not for what leaves no answer: then nobody knows whether the token has
/// counted the login, and a person has to look.
fn play_at_reopening(trouble: Trouble, function: Function, after: u32) {
    let mut scene = Scene::new();
    scene.have_trouble_under_load(|scene| scene.suffer(trouble, function, after));
    scene.have_trouble_while_keys_die(trouble, function);
    scene.nothing_is_left_but_identities();
}

macro_rules! matrix {
    ($($fault:ident is $trouble:expr;)*) => { $(
        mod $fault {
            use super::*;

            #[test]
            fn in_sign() {
                play($trouble, Function::Sign);
            }

            #[test]
            fn in_derive() {
                play($trouble, Function::DeriveKey);
            }

            #[test]
            fn in_generate() {
                play($trouble, Function::GenerateKeyPair);
            }

            #[test]
            fn in_wrap() {
                play($trouble, Function::WrapKey);
            }

            #[test]
            fn in_destroy() {
                play($trouble, Function::DestroyObject);
            }
        }
    )* };
}

matrix! {
    device_removed is DEVICE_REMOVED;
    token_not_present is TOKEN_NOT_PRESENT;
    session_count is SESSION_COUNT;
    device_memory is DEVICE_MEMORY;
    hang is HANG;
    crash is CRASH;
}

mod reopening {
    use super::*;

    macro_rules! cells {
        ($($name:ident is $trouble:expr, in $function:ident after $after:expr;)*) => { $(
            #[test]
            fn $name() {
                play_at_reopening($trouble, Function::$function, $after);
            }
        )* };
    }

    cells! {
        device_removed_in_first_session is DEVICE_REMOVED, in OpenSession after 0;
        device_removed_in_second_session is DEVICE_REMOVED, in OpenSession after 1;
        device_removed_in_login is DEVICE_REMOVED, in Login after 0;
        token_not_present_in_first_session is TOKEN_NOT_PRESENT, in OpenSession after 0;
        token_not_present_in_second_session is TOKEN_NOT_PRESENT, in OpenSession after 1;
        token_not_present_in_login is TOKEN_NOT_PRESENT, in Login after 0;
        session_count_in_first_session is SESSION_COUNT, in OpenSession after 0;
        session_count_in_second_session is SESSION_COUNT, in OpenSession after 1;
        device_memory_in_first_session is DEVICE_MEMORY, in OpenSession after 0;
        device_memory_in_second_session is DEVICE_MEMORY, in OpenSession after 1;
    }
}
