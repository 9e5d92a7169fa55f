//! What is written through the proxy arrives in the other Redis, byte for byte, and in the database, as Django reads it.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "tee/ack.rs"]
mod ack;
mod support;
#[path = "tee/trouble.rs"]
mod trouble;

use std::{
    ops::Range,
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::json;
use support::{
    DatabaseKind, Django, SECRET, Site, eventually, redis_server, session,
    site::{Held, now, sessions},
};

/// A site whose visitors were already there, and two session values that Django wrote.
struct Teed {
    site: Site,
    one: Vec<u8>,
    two: Vec<u8>,
}

impl Teed {
    fn start() -> Teed {
        Teed::start_with(&[])
    }

    fn start_with(args: &[&str]) -> Teed {
        let mut site = Site::prepare(DatabaseKind::Sqlite);
        site.start_proxy(args);
        Teed::on(site)
    }

    fn on(site: Site) -> Teed {
        let one = site
            .django
            .pickle(&json!({"name": "Zoë", "cart": [1, 2.5, null, true]}));
        let two = site
            .django
            .pickle(&json!({"name": "someone else", "big": 12_345_678_901_u64}));
        Teed { site, one, two }
    }

    /// Sends commands through the proxy. In a line `{name}` is the session of that name, `@1` and `@2` are the values.
    fn send(&self, lines: &[&str]) -> Vec<redis::Value> {
        let mut connection = self.site.proxy().connection();
        lines
            .iter()
            .map(|line| {
                self.words(line)
                    .query(&mut connection)
                    .unwrap_or_else(|error| panic!("{line}: {error}"))
            })
            .collect()
    }

    /// The same, and every line has to be answered with an error.
    fn send_refused(&self, lines: &[&str]) {
        let mut connection = self.site.proxy().connection();
        for line in lines {
            let answer: redis::RedisResult<redis::Value> = self.words(line).query(&mut connection);
            assert!(answer.is_err(), "{line}: {answer:?}");
        }
    }

    fn words(&self, line: &str) -> redis::Cmd {
        let mut command = redis::Cmd::new();
        for word in line.split_whitespace() {
            match word {
                "@1" => command.arg(&self.one),
                "@2" => command.arg(&self.two),
                _ => match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
                    Some(name) => command.arg(session(&key(name))),
                    None => command.arg(word),
                },
            };
        }
        command
    }

    /// What the source itself holds of that session.
    fn source(&self, name: &str) -> Option<Held> {
        sessions(&self.site.source).remove(&key(name))
    }

    /// The source holds that value, ending in so many seconds (or never), and so do the others.
    fn expect(&self, name: &str, value: &[u8], seconds: Option<Range<f64>>) {
        let held = self
            .source(name)
            .unwrap_or_else(|| panic!("{name} is not even on the source"));
        assert!(held.value == value, "{name}: the source holds another value");
        match (seconds, held.ends) {
            (None, None) => {}
            (Some(range), Some(ends)) => assert!(range.contains(&(ends - now())), "{name} ends in {}", ends - now()),
            (wanted, ends) => panic!("{name}: wanted an end in {wanted:?}, found {ends:?}"),
        }
    }

    /// It is nowhere: not in either Redis, not in the database.
    fn expect_gone(&self, names: &[&str]) {
        for name in names {
            assert!(self.source(name).is_none(), "{name} is still on the source");
            assert!(
                !sessions(&self.site.target).contains_key(&key(name)),
                "{name} is still on the target"
            );
            assert!(!self.rows().contains(&key(name)), "{name} still has a row");
        }
    }

    fn rows(&self) -> Vec<String> {
        self.site.django.rows().into_iter().map(|row| row.key).collect()
    }
}

/// A session key as Django makes them, from a word.
fn key(name: &str) -> String {
    format!("{name:0<32}")
}

fn about(seconds: f64) -> Option<Range<f64>> {
    Some(seconds - 20.0..seconds + 1.0)
}

// ---------------------------------------------------------------------------------------------- writes

#[test]
fn a_set_in_every_form_arrives_with_its_end() {
    let teed = Teed::start();
    let later = now() as u64 + 5_000;
    teed.send(&[
        "SET {plain} @1",
        "SET {ex} @1 EX 1000",
        "SET {px} @1 PX 1000000",
        &format!("SET {{exat}} @1 EXAT {later}"),
        &format!("SET {{pxat}} @1 PXAT {later}000"),
        "SETEX {setex} 1000 @1",
        "PSETEX {psetex} 1000000 @1",
        "SET {nx} @1 NX EX 1000",
        "SET {ex2} @1 EX 1000 NX",
        "set {lower} @1 ex 1000",
        "SET {xx} @1 EX 50",
        "SET {xx} @2 XX EX 1000",
        "SET {get} @1 EX 50",
        "SET {get} @2 GET EX 1000",
        "SET {keep} @1 EX 1000",
        "SET {keep} @2 KEEPTTL",
        "SET {cleared} @1 EX 1000",
        "SET {cleared} @2",
        "SET {getset} @1 EX 1000",
        "GETSET {getset} @2",
        "MSET {mset} @1 other x {mset2} @2",
        "MSETNX {msetnx} @1 {msetnx2} @2",
        "SETNX {setnx} @1",
    ]);
    for name in ["ex", "px", "setex", "psetex", "nx", "ex2", "lower"] {
        teed.expect(name, &teed.one, about(1_000.0));
    }
    for name in ["exat", "pxat"] {
        teed.expect(name, &teed.one, about(5_000.0));
    }
    for name in ["xx", "get", "keep"] {
        teed.expect(name, &teed.two, about(1_000.0));
    }
    for name in ["cleared", "getset", "mset2", "msetnx2"] {
        teed.expect(name, &teed.two, None);
    }
    for name in ["plain", "mset", "msetnx", "setnx"] {
        teed.expect(name, &teed.one, None);
    }
    assert_eq!(teed.site.expect_same_everywhere(), 20);
}

#[test]
fn a_write_that_was_answered_nil_or_an_error_changes_nothing() {
    let teed = Teed::start();
    teed.send(&["SET {held} @1 EX 1000", "RPUSH list x"]);
    teed.site.expect_same_everywhere();
    let before = teed.site.proxy().status().tee.target.delivered;
    let replies = teed.send(&[
        "SET {held} @2 NX EX 5",
        "SETNX {held} @2",
        "SET {absent} @2 XX",
        "MSETNX {held} @2 {fresh} @2",
    ]);
    assert_eq!(replies[0], redis::Value::Nil);
    assert_eq!(replies[3], redis::Value::Int(0));
    teed.send_refused(&[
        "SET {held} @2 EX 0",
        "SET {held} @2 EX abc",
        "SET {held} @2 NOSUCH",
        "SET {held}",
        "SETEX {held} -1 @2",
        "INCR {held}",
        "LPUSH {held} x",
        "RENAME {absent} {held}",
        "EXPIRE {held} abc",
    ]);
    teed.send(&[
        "EXPIRE {held} 5 GT",
        "EXPIRE {absent} 100",
        "PERSIST {absent}",
        "DEL {absent}",
        "GETDEL {absent}",
    ]);
    sleep(Duration::from_millis(500));
    teed.expect("held", &teed.one, about(1_000.0));
    teed.expect_gone(&["absent", "fresh"]);
    assert_eq!(teed.site.expect_same_everywhere(), 1);
    let after = teed.site.proxy().status().tee.target.delivered;
    println!("{} deliveries for writes that changed nothing", after - before);
}

#[test]
fn a_delete_in_every_form_removes_the_copy_and_the_row() {
    let teed = Teed::start();
    let names = [
        "del", "unlink", "getdel", "first", "second", "expire", "pexpire", "expireat", "setexat", "getex", "script",
        "restored",
    ];
    for name in names {
        teed.send(&[&format!("SET {{{name}}} @1 EX 1000")]);
    }
    teed.send(&["SET {stays} @1 EX 1000", "SET other x"]);
    assert_eq!(teed.site.expect_same_everywhere(), names.len() + 1);
    teed.send(&[
        "DEL {del}",
        "UNLINK {unlink}",
        "GETDEL {getdel}",
        "DEL {first} other {absent} {second}",
        "EXPIRE {expire} 0",
        "PEXPIRE {pexpire} -1",
        "EXPIREAT {expireat} 1",
        "SET {setexat} @2 EXAT 1",
        "GETEX {getex} PXAT 1",
        "EVAL return(redis.call('DEL',KEYS[1])) 1 {script}",
        "DEL {restored}",
    ]);
    assert_eq!(teed.site.expect_same_everywhere(), 1);
    teed.expect_gone(&names);
    teed.expect("stays", &teed.one, about(1_000.0));
}

#[test]
fn a_session_written_again_after_its_logout_is_there_and_one_deleted_after_its_write_is_not() {
    let teed = Teed::start();
    for _ in 0..100 {
        teed.send(&["SET {back} @1 EX 1000", "DEL {back}", "SET {back} @2 EX 1000"]);
        teed.send(&["SET {gone} @1 EX 1000", "DEL {gone}"]);
    }
    assert_eq!(teed.site.expect_same_everywhere(), 1);
    teed.expect("back", &teed.two, about(1_000.0));
    teed.expect_gone(&["gone"]);
}

#[test]
fn a_changed_end_arrives() {
    let teed = Teed::start();
    let later = now() as u64 + 5_000;
    let cases = [
        ("EXPIRE {} 5000", Some(5_000.0)),
        ("PEXPIRE {} 5000000", Some(5_000.0)),
        (&format!("EXPIREAT {{}} {later}"), Some(5_000.0)),
        (&format!("PEXPIREAT {{}} {later}000"), Some(5_000.0)),
        ("GETEX {} EX 5000", Some(5_000.0)),
        ("GETEX {} PX 5000000", Some(5_000.0)),
        ("GETEX {} PERSIST", None),
        ("GETEX {}", Some(1_000.0)),
        ("PERSIST {}", None),
        ("EXPIRE {} 5000 XX", Some(5_000.0)),
        ("EXPIRE {} 5000 NX", Some(1_000.0)),
        ("EXPIRE {} 5000 GT", Some(5_000.0)),
        ("EXPIRE {} 5000 LT", Some(1_000.0)),
        ("EXPIRE {} 500 LT", Some(500.0)),
    ];
    for (number, _) in cases.iter().enumerate() {
        teed.send(&[&format!("SET {{end{number}x}} @1 EX 1000")]);
    }
    assert_eq!(teed.site.expect_same_everywhere(), cases.len());
    for (number, (line, _)) in cases.iter().enumerate() {
        teed.send(&[&line.replace("{}", &format!("{{end{number}x}}"))]);
    }
    for (number, (line, seconds)) in cases.iter().enumerate() {
        println!("{line}");
        teed.expect(&format!("end{number}x"), &teed.one, seconds.and_then(about));
    }
    assert_eq!(teed.site.expect_same_everywhere(), cases.len());
}

#[test]
fn commands_whose_effect_only_redis_knows_arrive() {
    let teed = Teed::start();
    for name in [
        "rename", "renameto", "away", "renamenx", "copy", "copyto", "append", "setrange", "dumped", "moved", "sorted",
    ] {
        teed.send(&[&format!("SET {{{name}}} @1 EX 1000")]);
    }
    teed.send(&["SET ordinary @2 EX 700", "SET {renameto} @2 EX 1000"]);
    teed.site.expect_same_everywhere();
    teed.send(&[
        "RENAME {rename} {renameto}",
        "RENAME {away} ordinary2",
        "RENAME ordinary {from}",
        "RENAMENX {renamenx} {renamed}",
        "COPY {copy} {copied}",
        "COPY {copy} {copyto} REPLACE",
        "APPEND {append} tail",
        "SETRANGE {setrange} 0 x",
        "MOVE {moved} 5",
    ]);
    let mut connection = teed.site.proxy().connection();
    let dump: Vec<u8> = redis::cmd("DUMP")
        .arg(session(&key("dumped")))
        .query(&mut connection)
        .unwrap();
    redis::cmd("RESTORE")
        .arg(session(&key("restored")))
        .arg(900_000)
        .arg(&dump)
        .exec(&mut connection)
        .unwrap();
    teed.expect("renameto", &teed.one, about(1_000.0));
    teed.expect("renamed", &teed.one, about(1_000.0));
    teed.expect("copied", &teed.one, about(1_000.0));
    teed.expect("copyto", &teed.one, about(1_000.0));
    teed.expect("from", &teed.two, about(700.0));
    teed.expect("restored", &teed.one, about(900.0));
    teed.expect("append", &[teed.one.as_slice(), b"tail"].concat(), about(1_000.0));
    teed.site.proxy().settle();
    eventually("the target has the same", Duration::from_secs(10), || {
        let (source, target) = (sessions(&teed.site.source), sessions(&teed.site.target));
        source.len() == target.len()
            && source
                .iter()
                .all(|(key, held)| target.get(key).is_some_and(|copy| copy.value == held.value))
    });
    eventually("rows of what went away are gone", Duration::from_secs(10), || {
        let rows = teed.rows();
        ["rename", "away", "renamenx", "moved"]
            .iter()
            .all(|name| !rows.contains(&key(name)))
    });
    let rows = teed.rows();
    for name in ["renameto", "renamed", "copied", "copyto", "from", "restored"] {
        assert!(rows.contains(&key(name)), "{name} has no row");
    }
    assert!(
        !teed.site.target.ask::<bool>(&["EXISTS", "ordinary2"]),
        "it took another name and is no session now"
    );
}

#[test]
fn what_scripts_and_functions_write_arrives() {
    let teed = Teed::start();
    let mut connection = teed.site.proxy().connection();
    let names = ["script", "sha", "function", "computed"].map(|name| session(&key(name)));
    let write = "return redis.call('SET', KEYS[1], ARGV[1], 'EX', 1000)";
    redis::cmd("EVAL")
        .arg(write)
        .arg(1)
        .arg(&names[0])
        .arg(&teed.one)
        .exec(&mut connection)
        .unwrap();
    let sha: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(write)
        .query(&mut connection)
        .unwrap();
    redis::cmd("EVALSHA")
        .arg(sha)
        .arg(1)
        .arg(&names[1])
        .arg(&teed.one)
        .exec(&mut connection)
        .unwrap();
    let library = "#!lua name=lib\nredis.register_function('put', function(keys, args) \
                   return redis.call('SET', keys[1], args[1], 'EX', 1000) end)";
    redis::cmd("FUNCTION")
        .arg("LOAD")
        .arg(library)
        .exec(&mut connection)
        .unwrap();
    redis::cmd("FCALL")
        .arg("put")
        .arg(1)
        .arg(&names[2])
        .arg(&teed.one)
        .exec(&mut connection)
        .unwrap();
    // A script that does not say which keys it touches: only the source can tell.
    let computed = format!("return redis.call('SET', '{}', ARGV[1], 'EX', 1000)", names[3]);
    redis::cmd("EVAL")
        .arg(computed)
        .arg(0)
        .arg(&teed.one)
        .exec(&mut connection)
        .unwrap();
    assert_eq!(teed.site.expect_same_everywhere(), 4);
    for name in ["script", "sha", "function", "computed"] {
        teed.expect(name, &teed.one, about(1_000.0));
    }
}

#[test]
fn a_transaction_arrives_once_it_is_executed_and_not_before() {
    let teed = Teed::start();
    teed.send(&["SET {old} @1 EX 1000", "SET {logout} @1 EX 1000"]);
    teed.site.expect_same_everywhere();
    let mut connection = teed.site.proxy().connection();
    let ask = |line: &str, connection: &mut redis::Connection| -> redis::RedisResult<redis::Value> {
        teed.words(line).query(connection)
    };
    for line in [
        "MULTI",
        "SET {new} @2 EX 1000",
        "SET {old} @2 EX 1000",
        "DEL {logout}",
        "MSET {many} @1 {more} @2",
        "EXPIRE {many} 500",
    ] {
        ask(line, &mut connection).unwrap();
    }
    sleep(Duration::from_millis(300));
    assert_eq!(sessions(&teed.site.target).len(), 2, "something was teed before EXEC");
    ask("EXEC", &mut connection).unwrap();
    assert_eq!(teed.site.expect_same_everywhere(), 4);
    teed.expect("old", &teed.two, about(1_000.0));
    teed.expect("many", &teed.one, about(500.0));
    teed.expect_gone(&["logout"]);
    // Given up, refused, and overtaken transactions change nothing.
    for line in ["MULTI", "DEL {old}", "SET {discarded} @1", "DISCARD"] {
        ask(line, &mut connection).unwrap();
    }
    for line in ["MULTI", "DEL {old}"] {
        ask(line, &mut connection).unwrap();
    }
    assert!(ask("NOSUCH", &mut connection).is_err() && ask("EXEC", &mut connection).is_err());
    for line in ["WATCH {old}", "MULTI", "DEL {old}"] {
        ask(line, &mut connection).unwrap();
    }
    teed.send(&["SET {old} @1 EX 1000"]);
    assert_eq!(ask("EXEC", &mut connection).unwrap(), redis::Value::Nil);
    assert_eq!(teed.site.expect_same_everywhere(), 4);
    teed.expect("old", &teed.one, about(1_000.0));
    // One command inside fails, the others count.
    for line in ["MULTI", "LPUSH {old} x", "SET {after} @1 EX 1000"] {
        ask(line, &mut connection).unwrap();
    }
    let _ = ask("EXEC", &mut connection);
    assert_eq!(teed.site.expect_same_everywhere(), 5);
}

#[test]
fn a_flush_is_mirrored_where_it_happened() {
    for flush in ["FLUSHDB", "FLUSHALL", "FLUSHDB ASYNC"] {
        let teed = Teed::start();
        teed.send(&["SET {a} @1 EX 1000", "SET {b} @2 EX 1000", "SET other x"]);
        assert_eq!(teed.site.expect_same_everywhere(), 2);
        let mut connection = teed.site.proxy().connection();
        redis_server::ask::<()>(&mut connection, &["SELECT", "7"]);
        redis_server::ask::<()>(&mut connection, &["FLUSHDB"]);
        assert_eq!(
            teed.site.expect_same_everywhere(),
            2,
            "another database's flush touched the sessions"
        );
        teed.send(&[flush, "SET {after} @1 EX 1000"]);
        assert_eq!(teed.site.expect_same_everywhere(), 1, "after {flush}");
        teed.expect_gone(&["a", "b"]);
    }
}

#[test]
fn a_flush_can_be_refused() {
    let teed = Teed::start_with(&["--on-flush", "refuse"]);
    teed.send(&["SET {a} @1 EX 1000", "SET other x"]);
    teed.send_refused(&["FLUSHDB", "FLUSHALL"]);
    assert!(teed.site.source.ask::<bool>(&["EXISTS", "other"]));
    assert_eq!(teed.site.expect_same_everywhere(), 1);
}

// ---------------------------------------------------------------------------------------------- what does not travel

#[test]
fn other_keys_stay_where_they_are() {
    let teed = Teed::start();
    let cached_db = format!(":1:django.contrib.sessions.cached_db{}", key("row"));
    let mut connection = teed.site.proxy().connection();
    redis::cmd("SET")
        .arg(&cached_db)
        .arg(&teed.one)
        .exec(&mut connection)
        .unwrap();
    teed.send(&[
        "SET {a} @1 EX 1000",
        "SET other x",
        "RPUSH list y",
        "HSET hash f v",
        "SET :1:cached-page z EX 100",
        "INCR counter",
    ]);
    // The same name in another database is another key.
    redis_server::ask::<()>(&mut connection, &["SELECT", "3"]);
    redis::cmd("SET")
        .arg(session(&key("a")))
        .arg(&teed.two)
        .exec(&mut connection)
        .unwrap();
    redis::cmd("SET")
        .arg(session(&key("b")))
        .arg(&teed.two)
        .exec(&mut connection)
        .unwrap();
    redis_server::ask::<()>(&mut connection, &["FLUSHDB"]);
    assert_eq!(teed.site.expect_same_everywhere(), 1);
    teed.expect("a", &teed.one, about(1_000.0));
    let there: Vec<String> = teed.site.target.ask(&["KEYS", "*"]);
    assert_eq!(there, [session(&key("a"))], "more than the session reached the target");
    assert_eq!(teed.rows(), [key("a")], "more than the session reached the database");
}

#[test]
fn what_no_row_can_carry_is_copied_counted_and_named_by_digest_only() {
    let teed = Teed::start();
    let object = teed.site.django.pickle_object("datetime");
    let mut connection = teed.site.proxy().connection();
    let name = session(&key("object"));
    redis::cmd("SET")
        .arg(&name)
        .arg(&object)
        .arg("EX")
        .arg(1_000)
        .exec(&mut connection)
        .unwrap();
    teed.send(&["SET {storable} @1 EX 1000"]);
    eventually("the session is on the target", Duration::from_secs(5), || {
        teed.site
            .target
            .ask::<Option<Vec<u8>>>(&["GET", &name])
            .is_some_and(|copy| copy == object)
    });
    eventually("it is counted", Duration::from_secs(5), || {
        teed.site.proxy().status().sessions.unstorable == 1
    });
    assert_eq!(teed.site.expect_same_everywhere(), 2);
    assert!(
        !teed.site.proxy().log_text().contains(&key("object")),
        "a session key is in the log"
    );
    // It becomes storable again, and the other one ceases to be.
    redis::cmd("SET")
        .arg(&name)
        .arg(&teed.two)
        .arg("EX")
        .arg(1_000)
        .exec(&mut connection)
        .unwrap();
    redis::cmd("SET")
        .arg(session(&key("storable")))
        .arg(&object)
        .arg("EX")
        .arg(1_000)
        .exec(&mut connection)
        .unwrap();
    assert_eq!(teed.site.expect_same_everywhere(), 2);
    eventually("still one", Duration::from_secs(5), || {
        teed.site.proxy().status().sessions.unstorable == 1
    });
}

#[test]
fn a_session_key_too_long_for_the_column_is_counted_and_holds_up_nothing() {
    let teed = Teed::start();
    let long = "a".repeat(41);
    let mut connection = teed.site.proxy().connection();
    redis::cmd("SET")
        .arg(session(&long))
        .arg(&teed.one)
        .arg("EX")
        .arg(1_000)
        .exec(&mut connection)
        .unwrap();
    teed.send(&["SET {after} @1 EX 1000"]);
    teed.site.proxy().settle();
    eventually("the row after it is there", Duration::from_secs(5), || {
        teed.rows() == [key("after")]
    });
    assert!(teed.site.target.ask::<bool>(&["EXISTS", &session(&long)]));
    assert_eq!(teed.site.proxy().status().tee.database.rejected, 1);
}

#[test]
fn rows_that_the_database_refuses_are_counted_and_hold_up_nothing() {
    let teed = Teed::start();
    teed.site.django.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON django_session WHEN NEW.session_key LIKE 'odd%' \
         BEGIN SELECT RAISE(ABORT, 'odd'); END",
    );
    let mut names: Vec<String> = (100..200).map(|number| format!("even{number}")).collect();
    for (place, odd) in [(0, "odd1"), (50, "odd2"), (51, "odd3"), (103, "odd4")] {
        names.insert(place, odd.to_owned());
    }
    let mut pipeline = redis::pipe();
    for name in &names {
        pipeline.cmd("SETEX").arg(session(&key(name))).arg(1_000).arg(&teed.one);
    }
    pipeline.exec(&mut teed.site.proxy().connection()).unwrap();
    teed.site.proxy().settle();
    let mut rows = teed.rows();
    rows.sort_unstable();
    names.retain(|name| name.starts_with("even"));
    let expected: Vec<String> = names.iter().map(|name| key(name)).collect();
    assert_eq!(rows, expected);
    assert_eq!(teed.site.proxy().status().tee.database.rejected, 4);
}

// ---------------------------------------------------------------------------------------------- configuration

#[test]
fn prefix_and_version_of_the_site_are_honoured() {
    let teed = Teed::start_with(&["--key-prefix", "shöp:x", "--key-version", "2"]);
    let mut connection = teed.site.proxy().connection();
    let ours = format!("shöp:x:2:django.contrib.sessions.cache{}", key("ours"));
    for name in [&ours, &session(&key("theirs"))] {
        redis::cmd("SET")
            .arg(name)
            .arg(&teed.one)
            .arg("EX")
            .arg(1_000)
            .exec(&mut connection)
            .unwrap();
    }
    eventually("our session has a row", Duration::from_secs(5), || {
        !teed.rows().is_empty()
    });
    teed.site.proxy().settle();
    assert_eq!(teed.rows(), [key("ours")]);
    let there: Vec<String> = teed.site.target.ask(&["KEYS", "*"]);
    assert_eq!(there, [ours]);
}

#[test]
fn ends_are_stored_in_local_time_where_django_does_so() {
    for kind in [DatabaseKind::Sqlite, DatabaseKind::MariaDb] {
        let mut site = Site::prepare(kind);
        let caches = [("source", site.source.url()), ("target", site.target.url())];
        let settings = ["--no-use-tz", "--time-zone", "America/New_York"];
        site.django = Django::start_with("5.2", &caches, &site.database_url(), SECRET, &settings);
        let mut options = site.options();
        options.config = Some("[django]\nuse_tz = false\ntime_zone = \"America/New_York\"\n".to_owned());
        site.proxy = Some(support::Proxy::start(options));
        let teed = Teed::on(site);
        teed.send(&["SET {soon} @1 EX 1000", "SET {later} @2 EX 20000000"]);
        assert_eq!(teed.site.expect_same_everywhere(), 2, "{kind:?}");
    }
}
