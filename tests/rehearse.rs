//! A rehearsal on real sessions: nothing is left of it.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use serde_json::json;
use support::{DatabaseKind, Proxy, Site, session, site::sessions};

const SESSIONS: usize = 1_200;

fn what_is_rehearsed_is_compared_and_removed(kind: DatabaseKind) {
    let site = Site::prepare(kind);
    let keys = site.django.fill("source", SESSIONS, 21);
    let object = site.django.pickle_object("datetime");
    let unstorable = session(&"u".repeat(32));
    let mut set = redis::cmd("SET");
    set.arg(&unstorable).arg(&object).arg("EX").arg(500);
    set.exec(&mut site.source.connection()).unwrap();
    // Somebody's own, at the target already.
    site.target.ask::<()>(&["SET", &session(&keys[0]), "another"]);
    let before = sessions(&site.source);
    let proxy = Proxy::unstarted(site.options());

    let answer = proxy.configured("rehearse", &["--all"]).expect(0);
    let said = answer.said();
    for words in [
        &format!("{} read at the source, all that there are", SESSIONS + 1),
        &format!("{SESSIONS} written and read back, 0 differ"),
        "1 more were there already",
        "decoded, 0 differ",
        "1 sessions that no row can carry",
        "for each million sessions",
        "clients will be held",
        &format!("{SESSIONS} copies at the target"),
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let left = sessions(&site.target);
    assert_eq!(left.len(), 1, "{said}");
    assert_eq!(left[&keys[0]].value, b"another");
    assert!(site.django.rows().is_empty());
    let select = json!({"do": "sql", "statement": "SELECT * FROM sessionferry_rehearsal"});
    let table = site.django.try_ask::<serde_json::Value>(&select);
    assert!(table.is_err(), "the table is still there");
    let after = sessions(&site.source);
    assert!(before.keys().eq(after.keys()), "the source was only read");

    let sample = proxy
        .configured("rehearse", &["--sample", "70", "--json"])
        .expect(0)
        .json();
    assert_ne!(sample["result"], "red", "{sample}");
    assert!(
        sample["findings"]
            .to_string()
            .contains("70 read at the source, a sample"),
        "{sample}"
    );
}

#[test]
fn what_is_rehearsed_is_compared_and_removed_with_sqlite() {
    what_is_rehearsed_is_compared_and_removed(DatabaseKind::Sqlite);
}

#[test]
fn what_is_rehearsed_is_compared_and_removed_with_postgres() {
    what_is_rehearsed_is_compared_and_removed(DatabaseKind::Postgres);
}

#[test]
fn what_is_rehearsed_is_compared_and_removed_with_mariadb() {
    what_is_rehearsed_is_compared_and_removed(DatabaseKind::MariaDb);
}

#[test]
fn there_is_no_rehearsal_while_the_proxy_runs() {
    let site = Site::start(DatabaseKind::Sqlite);
    let folder = site.proxy().data_dir();
    let answer = site
        .proxy()
        .configured("rehearse", &["--data-dir", folder.to_str().unwrap()])
        .expect(1);
    assert!(answer.said().contains("a proxy runs with"), "{}", answer.said());
}
