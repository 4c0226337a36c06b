use std::collections::BTreeSet;

use mlskeyd_protocol::v1::Tier;

use super::*;

const SAMPLE: &str = include_str!("../../../docs/mlskeyd.toml");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("mlskeyd.toml"), text).map_err(|e| e.to_string())
}

fn refused(text: &str) -> String {
    parse(text).unwrap_err()
}

#[test]
fn the_sample_states_every_default() {
    assert_eq!(parse(SAMPLE).unwrap(), parse("").unwrap());
}

#[test]
fn the_sample_has_every_key() {
    for table in [
        "",
        "[store_key]",
        "[[devices]]",
        "[lifetimes]",
        "[policy]",
        "[limits]",
        "[dbus]",
        "[apps.a]",
    ] {
        // The refusal of an unknown key lists the known ones.
        let message = refused(&format!("{table}\nunknown = 1"));
        let keys: BTreeSet<_> = message.split('`').skip(1).step_by(2).collect();
        assert!(keys.len() > 1, "{message}");
        for key in keys.into_iter().filter(|key| *key != "unknown") {
            let key_line = |line: &str| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} = "))
                    || line.starts_with('[')
                        && line
                            .trim_matches(['[', ']'])
                            .split('.')
                            .any(|part| part == key)
            };
            assert!(SAMPLE.lines().any(key_line), "{table} {key}");
        }
    }
}

#[test]
fn defaults_are_as_promised() {
    let config = parse("").unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/mlskeyd"));
    let path = "/var/lib/mlskeyd/store.key".into();
    assert_eq!(
        config.store_key,
        StoreKeySource::File { path, create: true }
    );
    assert_eq!(config.default_device, "software");
    assert_eq!(config.lifetimes.grace, Duration::from_secs(24 * 3600));
    assert!(!config.policy.allow_leave);
}

#[test]
fn values_are_taken() {
    let config = parse(
        r#"
        state_dir = "/s"
        default_device = "b"
        [store_key]
        credential = "key"
        [[devices]]
        name = "a"
        kind = "software"
        [[devices]]
        name = "b"
        kind = "software"
        [lifetimes]
        grace = "0s"
        generation = "90m"
        [limits]
        queue = 7
        "#,
    )
    .unwrap();
    assert_eq!(
        config.store_key,
        StoreKeySource::Credential { name: "key".into() }
    );
    assert_eq!(
        (config.devices.len(), config.default_device.as_str()),
        (2, "b")
    );
    assert_eq!(config.lifetimes.grace, Duration::ZERO);
    assert_eq!(config.lifetimes.generation, Duration::from_secs(90 * 60));
    assert_eq!(
        config.lifetimes.orphan_grace,
        Lifetimes::default().orphan_grace
    );
    assert_eq!(
        (config.limits.queue, config.limits.queue_per_owner),
        (7, 64)
    );
    let moved = parse("state_dir = \"/s\"").unwrap().store_key;
    assert_eq!(
        moved,
        StoreKeySource::File {
            path: "/s/store.key".into(),
            create: true
        }
    );
}

#[test]
fn signers_are_public_keys() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti security@bank";
    let config = parse(&format!("[policy]\nsigners = [{key:?}, {key:?}]")).unwrap();
    assert!(config.policy.signers.is_some());
    assert!(parse("").unwrap().policy.signers.is_none());
    for (signers, why) in [
        ("[]".to_owned(), "nobody could sign"),
        ("[\"alice\"]".to_owned(), "is no public key"),
        (
            format!("[{key:?}, {:?}]", key.replace("ssh-", "x-")),
            "is no public key",
        ),
    ] {
        let message = refused(&format!("[policy]\nsigners = {signers}"));
        assert!(
            message.contains(why) && message.starts_with("mlskeyd.toml:2:"),
            "{message}"
        );
    }
}

#[test]
fn a_tier_of_hpke_keys_is_of_one_device() {
    let token = "kind = \"pkcs11\"\nmodule = \"/m.so\"";
    let text = format!(
        "[[devices]]\nname = \"a\"\n{token}\ntoken = \"a\"\nhpke_tier = \"sealed\"\n\
         [[devices]]\nname = \"b\"\n{token}\ntoken = \"b\"\nhpke_tier = \"hardware\"\n\
         [[devices]]\nname = \"c\"\n{token}\ntoken = \"c\"\n"
    );
    let devices = parse(&text).unwrap().devices;
    let tiers: Vec<_> = devices.iter().map(|device| device.hpke_tier).collect();
    assert_eq!(tiers, [Some(Tier::Sealed), Some(Tier::Hardware), None]);
}

#[test]
fn a_refusal_says_where_and_what_would_be_right() {
    let device = "[[devices]]\nname = \"soft\"\nkind = \"software\"\n";
    let cases = [
        ("stat_dir = \"/s\"", "1:1:", "did you mean `state_dir`?"),
        (
            "# é\n[lifetimes]\ngrance = \"1h\"",
            "3:1:",
            "did you mean `grace`?",
        ),
        ("[limit]", "1:2:", "did you mean `limits`?"),
        ("[lifetimes]\ngrace = \"1 day\"", "2:9:", "\"24h\""),
        ("[lifetimes]\ngrace = 5", "2:9:", "expected a string"),
        (
            "[lifetimes]\ngeneration = \"0s\"",
            "2:14:",
            "longer than 0s",
        ),
        ("state_dir = \"s\"", "1:13:", "begin with `/`"),
        ("[store_key]\nfile = \"key\"", "2:8:", "begin with `/`"),
        ("[limits]\nqueue = 0", "2:9:", "between 1 and 65536"),
        ("[limits]\nqueue = -1", "2:9:", "-1"),
        (
            "[[devices]]\nname = \"a b\"\nkind = \"software\"",
            "2:8:",
            "1 to 64 letters",
        ),
        (
            "[[devices]]\nname = \"a\"\nkind = \"sofware\"",
            "3:8:",
            "did you mean `software`?",
        ),
        ("[[devices]]\nname = \"a\"", "1:1:", "missing field `kind`"),
        (&format!("{device}{device}"), "4:1:", "a name of its own"),
        (
            &format!("{device}hpke_tier = \"hardware\""),
            "1:1:",
            "leave `hpke_tier` out",
        ),
        (
            "[[devices]]\nname = \"a\"\nkind = \"pkcs11\"\nhpke_tier = \"software\"",
            "1:1:",
            "\"hardware\" or \"sealed\"",
        ),
        (
            "[[devices]]\nname = \"a\"\nkind = \"pkcs11\"\nhpke_tier = \"best\"",
            "4:13:",
            "there is no tier \"best\"",
        ),
        (
            &format!("default_device = \"sof\"\n{device}"),
            "1:18:",
            "did you mean `soft`?",
        ),
        (
            "[store_key]\nfile = \"/k\"\ncredential = \"k\"",
            "1:1:",
            "leave one of them out",
        ),
        (
            "[store_key]\ncredential = \"k\"\ncreate = true",
            "1:1:",
            "leave `create` out",
        ),
        ("[store_key]\ncredential = \"../k\"", "1:1:", "plain name"),
        ("state_dir = ", "1:13:", ""),
    ];
    for (text, place, words) in cases {
        let message = refused(text);
        assert!(
            message.starts_with(&format!("mlskeyd.toml:{place}")),
            "{text}\n{message}"
        );
        assert!(message.contains(words), "{text}\n{message}");
    }
}

#[test]
fn a_tpm_is_reached_by_a_known_way_and_is_one_device() {
    let tpm = |more: &str| {
        parse(&format!(
            "[[devices]]\nname = \"t\"\nkind = \"tpm2\"\n{more}"
        ))
    };
    let kind = |more: &str| tpm(more).unwrap().devices.remove(0).kind;
    assert_eq!(kind(""), DeviceKind::Tpm2(Tpm2Config::default()));
    let tcti = Tcti::parse("device:/dev/tpm0").unwrap();
    let nv_index = Some(0x0180_0100);
    assert_eq!(
        kind("tcti = \"device:/dev/tpm0\"\nnv_index = 0x01800100"),
        DeviceKind::Tpm2(Tpm2Config {
            tcti,
            nv_index,
            measured: None
        })
    );
    let DeviceKind::Tpm2(bound) = kind("pcrs = [7, 0]\nrecovery_key = \"/r.pem\"") else {
        panic!("another kind")
    };
    let measured = bound.measured.unwrap();
    assert_eq!(measured.pcrs.to_string(), "PCR 0, 7");
    assert_eq!(measured.recovery_key, Path::new("/r.pem"));
    for (more, words) in [
        ("tcti = \"/usr/lib/evil.so\"", "`device:` and a path"),
        ("nv_index = 0x01c00002", "from 0x01800000"),
        ("hpke_tier = \"sealed\"", "leave `hpke_tier` out"),
        ("pin_file = \"/p\"", "nothing else"),
        ("pcrs = [7]", "`pcrs` needs `recovery_key`"),
        ("recovery_key = \"/r.pem\"", "so it needs `pcrs`"),
        (
            "pcrs = [24]\nrecovery_key = \"/r.pem\"",
            "from 0 to 23, each once",
        ),
        ("pcrs = []\nrecovery_key = \"/r.pem\"", "names no register"),
        ("pcrs = [7]\nrecovery_key = \"r.pem\"", "begin with `/`"),
        (
            "[[devices]]\nname = \"u\"\nkind = \"tpm2\"",
            "are the same one",
        ),
        (
            "[[devices]]\nname = \"s\"\nkind = \"software\"\ntcti = \"tabrmd\"",
            "nothing else",
        ),
    ] {
        let message = tpm(more).unwrap_err();
        assert!(message.contains(words), "{more}\n{message}");
    }
}

#[test]
fn a_yubikey_has_one_management_key_and_each_slot_once() {
    let yubikey = |more: &str| {
        parse(&format!(
            "[[devices]]\nname = \"y\"\nkind = \"yubikey\"\n{more}"
        ))
    };
    let device = |more: &str| yubikey(more).unwrap().devices.remove(0);
    let DeviceKind::YubiKey(plain) = device("").kind else {
        panic!("another kind")
    };
    assert_eq!(
        plain,
        YubiKeyConfig {
            serial: None,
            pin: SecretSource::None,
            agreement_slot: Slot::KEY_MANAGEMENT,
            consent_slot: None,
            managed: None,
        }
    );
    assert_eq!(device("").hpke_tier, Some(Tier::Sealed));
    let hardware = device("hpke_tier = \"hardware\"");
    assert_eq!(hardware.hpke_tier, Some(Tier::Hardware));
    let DeviceKind::YubiKey(managed) = device("serial = \"7\"\nmanagement_key = \"on-card\"").kind
    else {
        panic!("another kind")
    };
    assert_eq!(managed.serial, Some(7));
    let managed = managed.managed.unwrap();
    assert_eq!(managed.key, ManagementKeyConfig::OnTheCard);
    assert_eq!(managed.slots.len(), 20);
    for (more, words) in [
        ("serial = \"x\"", "is a number"),
        ("hpke_tier = \"software\"", "no keys in tier software"),
        ("agreement_slot = \"f9\"", "a slot is"),
        ("slots = [\"82\"]", "takes the management key"),
        ("management_key = \"0102\"", "from one place"),
        (
            "management_key = \"on-card\"\nmanagement_key_file = \"/k\"",
            "from one place",
        ),
        (
            "management_key = \"on-card\"\nslots = [\"82\", \"82\"]",
            "each once",
        ),
        ("management_key = \"on-card\"\nslots = []", "at least one"),
        (
            "management_key = \"on-card\"\nslots = [\"9d\"]",
            "keys are sealed under",
        ),
        ("consent_slot = \"9d\"", "is another slot"),
        ("module = \"/m.so\"", "nothing else"),
        ("nv_index = 0x01800100", "nothing else"),
        (
            "[[devices]]\nname = \"z\"\nkind = \"yubikey\"\nserial = \"7\"",
            "are the same one",
        ),
        (
            "[[devices]]\nname = \"t\"\nkind = \"tpm2\"\nslots = [\"82\"]",
            "nothing else",
        ),
    ] {
        let message = yubikey(more).unwrap_err();
        assert!(message.contains(words), "{more}\n{message}");
    }
}

#[test]
fn durations_are_a_number_and_a_unit() {
    for (text, seconds) in [
        ("0s", 0),
        ("30s", 30),
        ("15m", 900),
        ("24h", 86_400),
        ("3650d", 315_360_000),
    ] {
        assert_eq!(
            parse_duration(text),
            Some(Duration::from_secs(seconds)),
            "{text}"
        );
    }
    for text in [
        "",
        "s",
        "5",
        "+5s",
        "-5s",
        "5 s",
        "5S",
        "1h30m",
        "3651d",
        "99999999999999999999s",
        "5é",
        "é",
    ] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
}

#[test]
fn distances_are_levenshteins() {
    for (a, b, expected) in [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("grance", "grace", 1),
    ] {
        assert_eq!((distance(a, b), distance(b, a)), (expected, expected));
    }
}

#[test]
fn a_file_is_bounded_and_has_to_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mlskeyd.toml");
    let error = Config::load(&path).unwrap_err().to_string();
    assert!(error.contains("--config"), "{error}");
    std::fs::write(&path, "#".repeat(1024 * 1024 + 1)).unwrap();
    assert!(Config::load(&path).is_err());
    std::fs::write(&path, SAMPLE).unwrap();
    assert_eq!(Config::load(&path).unwrap(), parse("").unwrap());
}

#[test]
fn a_bus_is_named_or_at_an_address() {
    let bus = |said: &str| parse(&format!("[dbus]\nbus = {said:?}")).map(|config| config.bus);
    assert_eq!(bus("none"), Ok(None));
    assert_eq!(bus("system"), Ok(Some(Bus::System)));
    assert_eq!(bus("session"), Ok(Some(Bus::Session)));
    let address = "unix:path=/run/bus";
    assert_eq!(bus(address), Ok(Some(Bus::At(address.to_owned()))));
    let long = format!("unix:path=/{}", "x".repeat(4096));
    for none in ["", "System", "tcp:host=127.0.0.1", &long] {
        assert!(bus(none).unwrap_err().contains("a bus is"), "{none}");
    }
}
