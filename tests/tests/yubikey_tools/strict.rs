//! What a real key refuses, the virtual one refuses: raw commands, through pcscd, and the
//! status words that Yubico's manual and SP 800-73-4 (part 2, 2.3) give.

use mlskeyd_virtual_yubikey::control::FingerOrder;

use super::bench::{Bench, NEW, OLD, PIN, PUK};

const SELECT: &str = "00a4040005a000000308";
const OK: &str = "9000";
const SECURITY: &str = "6982";

/// VERIFY with a PIN.
fn verify(pin: &str) -> String {
    format!(
        "0020008008{}{}",
        hex(pin.as_bytes()),
        "ff".repeat(8 - pin.len())
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A signature by the key in a slot, over a hash of zeroes.
fn sign(slot: &str) -> String {
    format!("008711{slot}267c2482008120{}00", "00".repeat(32))
}

/// The status words of these commands, after the application was selected.
fn statuses(bench: &mut Bench, commands: &[&str]) -> Vec<String> {
    let answers = bench.cards.disturb(0, &[&[SELECT], commands].concat());
    let status = |answer: &String| answer[answer.len() - 4..].to_owned();
    answers.iter().skip(1).map(status).collect()
}

/// Has `yubico-piv-tool` make a key of P-256 with these policies.
fn generate(bench: &Bench, slot: &str, pin: &str, touch: &str) {
    let [pin, touch] = [
        format!("--pin-policy={pin}"),
        format!("--touch-policy={touch}"),
    ];
    let make = ["-a", "generate", "-s", slot, "-A", "ECCP256", &pin, &touch];
    bench.run("yubico-piv-tool", &make);
}

#[test]
fn a_key_wants_the_pin_as_its_policy_says() {
    for version in [OLD, NEW] {
        let mut bench = Bench::new(version);
        for (slot, policy) in [("82", "never"), ("83", "once"), ("84", "always")] {
            generate(&bench, slot, policy, "never");
        }
        let (pin, never, once, always) = (verify(PIN), sign("82"), sign("83"), sign("84"));
        let seen = statuses(
            &mut bench,
            &[
                &never, &once, &pin, &once, &once, &always, &pin, &always, &always,
            ],
        );
        assert_eq!(seen, [OK, SECURITY, OK, OK, OK, SECURITY, OK, OK, SECURITY]);
        // It is forgotten with a new selection.
        let seen = statuses(&mut bench, &[&pin, SELECT, &once]);
        assert_eq!(seen, [OK, OK, SECURITY]);
        let seen = statuses(&mut bench, &[&pin, "0020ff80", &once]);
        assert_eq!(seen, [OK, OK, SECURITY]);
    }
}

#[test]
fn a_key_wants_a_finger_as_its_policy_says() {
    let mut bench = Bench::new(OLD);
    generate(&bench, "82", "once", "always");
    generate(&bench, "83", "once", "cached");
    let card = bench.card;
    let (pin, always, cached) = (verify(PIN), sign("82"), sign("83"));
    bench.cards.finger(card, FingerOrder::Never);
    assert_eq!(
        statuses(&mut bench, &[&pin, &always, &cached]),
        [OK, SECURITY, SECURITY]
    );
    bench.cards.finger(card, FingerOrder::Now);
    let commands = [&pin, &always, &cached].map(String::as_str);
    assert_eq!(statuses(&mut bench, &commands), [OK, OK, OK]);
    // A touch counts for 15 seconds, for a key that says so, as long as there is power.
    let mut touched = |seconds, expected| {
        bench.cards.finger(card, FingerOrder::Now);
        assert_eq!(statuses(&mut bench, &[&pin, &cached]), [OK, OK]);
        bench.cards.finger(card, FingerOrder::Never);
        bench.cards.wait(card, seconds);
        let answers = bench.cards.disturb(0, &[&cached, &always]);
        let ends: Vec<_> = answers.iter().map(|answer| answer.ends_with(OK)).collect();
        assert_eq!(ends, [expected, false]);
    };
    touched(14, true);
    touched(15, false);
}

#[test]
fn tries_are_counted_over_losses_of_power() {
    for version in [OLD, NEW] {
        let mut bench = Bench::new(version);
        let (right, wrong) = (verify(PIN), verify("999999"));
        assert_eq!(
            statuses(&mut bench, &["00200080", &wrong, "00200080"]),
            ["63c3", "63c2", "63c2"]
        );
        let card = bench.card;
        bench.cards.remove(0);
        bench.cards.insert(card, 0);
        assert_eq!(
            statuses(&mut bench, &[&wrong, &wrong, &right]),
            ["63c1", "6983", "6983"]
        );
        let unblock = |puk: &str| {
            format!(
                "002c008010{}{}ffff",
                hex(puk.as_bytes()),
                hex(PIN.as_bytes())
            )
        };
        let (right_puk, wrong_puk) = (unblock(PUK), unblock("99999999"));
        assert_eq!(
            statuses(&mut bench, &[&wrong_puk, &right_puk, &right]),
            ["63c2", OK, OK]
        );
        // A reset takes both to be blocked.
        assert_eq!(statuses(&mut bench, &["00fb0000"]), ["6985"]);
    }
}

#[test]
fn what_is_no_command_or_no_point_is_refused() {
    for version in [OLD, NEW] {
        let mut bench = Bench::new(version);
        generate(&bench, "82", "never", "never");
        let agree = |point: &str| {
            let template = format!("820085{:02x}{point}", point.len() / 2);
            let length = template.len() / 2;
            format!("00871182{:02x}7c{length:02x}{template}00", length + 2)
        };
        let (off_curve, short) = (agree(&format!("04{}", "01".repeat(64))), agree("0401"));
        let too_long = format!("00871182277c2582008121{}00", "00".repeat(33));
        let other_algorithm = sign("82").replacen("8711", "8714", 1);
        let (make_ed, delete) = ("0047008505ac038001e0", "00f6ff8200");
        let seen = statuses(
            &mut bench,
            &[
                &off_curve,
                &short,
                &too_long,
                &other_algorithm,
                &sign("83"),
                make_ed,
                "0047008205ac03800111",
                "00f70082",
                "00f70083",
                "00f7009f",
                "00ee0000",
                "80fd0000",
                "0020009f",
                delete,
            ],
        );
        let deletes = if version == NEW { SECURITY } else { "6d00" };
        assert_eq!(
            seen,
            [
                "6a80", "6a80", "6a80", "6a80", "6a80", SECURITY, SECURITY, OK, "6a88", "6a88",
                "6d00", "6e00", "6a88", deletes,
            ]
        );
        // Not selected, it knows nothing.
        let card = bench.card;
        bench.cards.remove(0);
        bench.cards.insert(card, 0);
        assert_eq!(
            bench.cards.disturb(0, &["00fd0000", "00f70082"]),
            ["6d00", "6d00"]
        );
    }
}

#[test]
fn curve25519_is_of_firmware_5_7() {
    for (version, expected) in [(OLD, false), (NEW, true)] {
        let bench = Bench::new(version);
        let pin = mlskeyd_tests::rig::PIN;
        let made = bench.cards.provision_with(
            &["--signature", "82:ed25519"],
            &format!("{pin}\n31415926\n"),
        );
        assert_eq!(made.is_ok(), expected, "{made:?}");
        if let Err(refused) = made {
            assert!(refused.contains("5.7"), "{refused}");
        }
    }
}
