//! Keys that get another owner: an administrator's order, and the app that takes over what
//! was made before it had a name.

use mlskeyd_protocol::v1::{
    CreateIdentity, CreateIdentityFor, Freeze, FreezeTarget, GenerateHpke, Kem, ReassignKeys,
    Reassigned, Thaw,
};

use super::*;
use crate::custody::subject::Subject;

fn owner(app: &str) -> Owner {
    Owner {
        uid: 1000,
        app: app.to_owned(),
    }
}

fn order(from: &str, to: &str) -> ReassignKeys {
    ReassignKeys {
        from: owner(from),
        to: owner(to),
        identities: Vec::new(),
        storages: Vec::new(),
    }
}

fn named(name: &str) -> CreateIdentity {
    CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(Bytes::from(name.as_bytes())),
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
    }
}

fn hpke() -> GenerateHpke {
    GenerateHpke {
        kem: Kem::DhKemX25519,
        placement: Placement::default(),
    }
}

impl Bench {
    /// A connection of an app of the user 1000.
    fn app(&self, app: &str) -> Session {
        let mut caller = Caller::new(1000, None);
        caller.owner = owner(app);
        self.custody.connect(caller)
    }

    async fn ask<R: Request>(&self, session: &Session, request: R) -> Result<R::Reply, Failure> {
        let (reporter, _reports) = Reporter::channel();
        let call = Call {
            options: CallOptions {
                interaction: Interaction::Never,
                priority: Priority::Interactive,
                token: 1,
            },
            deadline: Instant::now() + Duration::from_secs(60),
            progress: reporter.for_call(1),
            asker: Asker {
                owner: session.caller().owner.clone(),
                action: R::ACTION,
            },
        };
        session.serve(call, request).await
    }

    /// The names of the identities that a connection finds.
    async fn finds(&self, session: &Session) -> Vec<String> {
        let found = self.ask(session, Identities).await.unwrap();
        found.into_iter().map(|it| it.name).collect()
    }

    async fn freeze(&self, target: FreezeTarget) {
        let reason = String::new();
        self.serve(Freeze { target, reason }).await.unwrap();
    }

    fn notes(&self, action: &str) -> Vec<String> {
        let records = self.records().into_iter();
        let noted = records.filter(|record| record.action == action);
        noted
            .map(|record| match record.outcome {
                AuditOutcome::Noted { note } => note.into_owned(),
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

#[tokio::test]
async fn connections_lose_and_gain_with_the_next_request() {
    let bench = Bench::new();
    let (chat, other) = (bench.app("chat"), bench.app("other"));
    let alice = bench.ask(&chat, named("alice")).await.unwrap();
    let key = bench.ask(&chat, hpke()).await.unwrap();
    let attach = Attach {
        storage: "s".to_owned(),
        ends: false,
    };
    bench.ask(&other, attach).await.unwrap();
    let told = bench.serve(order("chat", "other")).await.unwrap();
    assert_eq!(
        told,
        Reassigned {
            identities: vec!["alice".to_owned()],
            storages: Vec::new(),
            signature_keys: 1,
            hpke_keys: 1,
        }
    );
    assert_eq!(bench.finds(&chat).await, Vec::<String>::new());
    assert_eq!(bench.finds(&other).await, ["alice"]);
    let look_up = LookUp(vec![key.public_key.clone(), alice.public_key.clone()]);
    let found = bench.ask(&chat, look_up.clone()).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 0);
    let found = bench.ask(&other, look_up).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 2);
    let refused = bench.ask(&chat, Prepare("alice".to_owned())).await;
    assert_eq!(refused.unwrap_err().code, FailureCode::NotFound);
    // On record: what is to be done, and that it was.
    let notes = bench.notes("KeysReassigned");
    let wanted = "1000/chat -> 1000/other: identities \"alice\"; storages none; \
                  1 signature keys and 1 HPKE keys";
    assert_eq!(notes, [wanted]);
    let record = bench.record("ReassignKeys");
    assert_eq!(record.owner, Some(owner("chat")));
    assert!(matches!(record.outcome, AuditOutcome::Served { .. }));
    let facts = record.facts.unwrap();
    assert!(facts.contains("\"to_app\":\"other\""), "{facts}");
}

/// It was the owner's when it asked: a person may have been waited for since.
#[tokio::test]
async fn what_is_under_way_does_not_get_by_the_new_owner() {
    let bench = Bench::new();
    let chat = bench.app("chat");
    let alice = bench.ask(&chat, named("alice")).await.unwrap();
    let mut subject = Subject::new(Action::SignApp);
    chat.key(alice.key, &mut subject).await.unwrap();
    bench.custody.still_owned(&subject).await.unwrap();
    bench.serve(order("chat", "other")).await.unwrap();
    let refused = bench.custody.still_owned(&subject).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::NotFound);
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let bench = Bench::new();
    let (chat, other) = (bench.app("chat"), bench.app("other"));
    let code = async |order: ReassignKeys| bench.serve(order).await.unwrap_err().code;
    assert_eq!(code(order("chat", "chat")).await, FailureCode::BadRequest);
    assert_eq!(code(order("chat", "other")).await, FailureCode::NotFound);
    assert_eq!(code(order("chat", "a\nb")).await, FailureCode::BadRequest);
    let many = ReassignKeys {
        identities: vec!["alice".to_owned(); 257],
        ..order("chat", "other")
    };
    assert_eq!(code(many).await, FailureCode::BadRequest);
    bench.ask(&chat, named("alice")).await.unwrap();
    bench.ask(&other, named("alice")).await.unwrap();
    let failure = bench.serve(order("chat", "other")).await.unwrap_err();
    assert_eq!(failure.code, FailureCode::Conflict);
    assert!(failure.message.contains("\"alice\" already"), "{failure}");
    // Who is no administrator has nothing to say.
    let refused = bench.serve_for(1000, order("chat", "third")).await;
    assert_eq!(refused.unwrap_err().code, FailureCode::Denied);
    assert_eq!(bench.notes("KeysReassigned"), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_is_thawed_by_another_owner() {
    let bench = Bench::new();
    let chat = bench.app("chat");
    bench.ask(&chat, named("alice")).await.unwrap();
    bench.ask(&chat, named("bob")).await.unwrap();
    let identity = FreezeTarget::Identity {
        owner: owner("chat"),
        name: "alice".to_owned(),
    };
    for target in [
        FreezeTarget::User(1000),
        FreezeTarget::App("chat".to_owned()),
        identity.clone(),
    ] {
        bench.freeze(target.clone()).await;
        let refused = bench.serve(order("chat", "other")).await.unwrap_err();
        assert_eq!(refused.policy.as_deref(), Some("rule/frozen"), "{target}");
        bench.serve(Thaw { target }).await.unwrap();
    }
    assert_eq!(bench.notes("KeysReassigned"), Vec::<String>::new());
    // Also if that was frozen when all had been looked at.
    bench.freeze(identity).await;
    let late = bench.custody.reassign(order("chat", "other"), false, None);
    assert!(late.await.unwrap().is_err());
    // What is not frozen goes.
    let bob = ReassignKeys {
        identities: vec!["bob".to_owned()],
        ..order("chat", "other")
    };
    bench.serve(bob).await.unwrap();
    assert_eq!(bench.finds(&chat).await, ["alice"]);
}

#[tokio::test]
async fn identities_that_were_not_judged_do_not_go() {
    let bench = Bench::new();
    let chat = bench.app("chat");
    bench.ask(&chat, named("alice")).await.unwrap();
    let judged = BTreeMap::from([("alice".to_owned(), named("another").credential)]);
    let outrun = bench
        .custody
        .reassign(order("chat", "other"), false, Some(judged));
    let outrun = outrun.await.unwrap().unwrap_err();
    assert_eq!(outrun, store::NotReassigned::Outrun(owner("chat")));
    assert_eq!(bench.finds(&chat).await, ["alice"]);
}

#[tokio::test]
async fn what_was_made_before_the_app_had_a_name_is_its_own_once() {
    let bench = Bench::new();
    let unnamed = bench.app("default");
    bench.ask(&unnamed, named("alice")).await.unwrap();
    // Another named app takes nothing over.
    let other = bench.app("other");
    assert_eq!(bench.finds(&other).await, Vec::<String>::new());
    let wire = bench.app("wire");
    assert_eq!(bench.finds(&wire).await, ["alice"]);
    assert_eq!(bench.finds(&unnamed).await, Vec::<String>::new());
    let record = bench.record("KeysTakenOver");
    assert_eq!(
        (record.caller, record.owner),
        (None, Some(owner("default")))
    );
    let wanted = "takes_over of the app wire: 1000/default -> 1000/wire: identities \"alice\"; \
                  storages none; 1 signature keys and 0 HPKE keys";
    assert_eq!(bench.notes("KeysTakenOver"), [wanted]);
    // What is made later stays.
    bench.ask(&unnamed, named("bob")).await.unwrap();
    let again = bench.app("wire");
    assert_eq!(bench.finds(&again).await, ["alice"]);
    assert_eq!(bench.finds(&unnamed).await, ["bob"]);
    assert_eq!(bench.notes("KeysTakenOver").len(), 1);
    assert!(
        bench
            .custody
            .registry
            .has_taken_over(&owner("wire"))
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn there_may_be_nothing_to_take_over() {
    let bench = Bench::new();
    let wire = bench.app("wire");
    assert_eq!(bench.finds(&wire).await, Vec::<String>::new());
    let unnamed = bench.app("default");
    bench.ask(&unnamed, named("alice")).await.unwrap();
    assert_eq!(bench.finds(&bench.app("wire")).await, Vec::<String>::new());
    assert_eq!(bench.notes("KeysTakenOver"), Vec::<String>::new());
}

#[tokio::test]
async fn an_app_that_cannot_take_over_is_served() {
    let bench = Bench::new();
    let unnamed = bench.app("default");
    bench.ask(&unnamed, named("alice")).await.unwrap();
    let twin = CreateIdentityFor {
        owner: owner("wire"),
        name: "alice".to_owned(),
        credential: named("alice").credential,
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
        pin: None,
    };
    bench.serve(twin).await.unwrap();
    for _ in 0..2 {
        let wire = bench.app("wire");
        assert_eq!(bench.finds(&wire).await, ["alice"]);
        assert_eq!(bench.finds(&unnamed).await, ["alice"]);
    }
    let wanted = "takes_over of the app wire: nothing of 1000/default is 1000/wire's: \
                  1000/wire has an identity \"alice\" already";
    assert_eq!(bench.notes("KeysTakenOver"), [wanted]);
}

#[tokio::test]
async fn what_is_frozen_is_taken_over_when_it_is_thawed() {
    let bench = Bench::new();
    let unnamed = bench.app("default");
    bench.ask(&unnamed, named("alice")).await.unwrap();
    let target = FreezeTarget::App("default".to_owned());
    bench.freeze(target.clone()).await;
    for _ in 0..2 {
        assert_eq!(bench.finds(&bench.app("wire")).await, Vec::<String>::new());
    }
    let wanted = "takes_over of the app wire: nothing of 1000/default is 1000/wire's yet: \
                  app \"default\" is frozen, and would not be any more";
    assert_eq!(bench.notes("KeysTakenOver"), [wanted]);
    bench.serve(Thaw { target }).await.unwrap();
    assert_eq!(bench.finds(&bench.app("wire")).await, ["alice"]);
}
