//! What `--help` says beside the commands.

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; doctor: something that it looked at does
  2  wrong usage
  3  the daemon cannot be reached, or its version does not fit
  4  denied
  5  the device, or the key, was unlocked already: the PIN was not tried
  6  attestation: the evidence is refused
  7  attestation: the AK is not bound to this TPM
  8  audit: the chain of the log is broken

Root and the daemon's own user are served, and whom polkit lets (docs/polkit.md): where it
wants a password there are two minutes to give it. `attest challenge` and `attest
verify` are for whoever trusts neither: they need no daemon and no device, and
neither do `audit`, `doctor`, `policy check`, `policy manifest`, `policy test` and
`policy replay`.";

pub(super) const JSON: &str = "\
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
  devices list    [DEVICE], also without list
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
  doctor          {\"good\", \"findings\": [{\"check\", \"verdict\": \"ok|warn|fail|skip\",
                   \"what\": text, \"do\": text or null}]}
  agent           nothing
  audit verify    {\"holds\", \"records\": number, those that hold if it does not,
                   \"first\", \"last\": seconds since 1970 or null, \"hash\": hex or null,
                   \"torn\": bytes of a record that is not whole,
                   \"broken\": null or {\"offset\", \"after\": record, \"why\"}}
  audit show      [RECORD]
  audit follow    RECORD, each on a line of its own
  RECORD   {\"record\": its number, \"time\": seconds since 1970, \"time_us\": microseconds,
            \"caller\": null or {\"owner\": OWNER, \"pid\": number or null,
                              \"program\": text or null},
            \"owner\": OWNER or null: of what it is about, if that is another one,
            \"action\", \"key\", \"identity\", \"group\": hex, \"epoch\", \"device\": or null,
            \"raises\": the guard's mark, \"outcome\": \"served|denied|failed|noted\",
            \"policy\": text or null, \"reason\": text or null,
            \"content\": SHA-256 of what was signed or opened, or null,
            \"would_deny\": [text]: policies that are only reported,
            \"facts\": object or null: what policies knew, \"duration_us\",
            \"repeated\": how many more it stands for}
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
