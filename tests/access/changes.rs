//! Users that are changed, or deleted, while clients are connected.

use std::{thread::sleep, time::Duration};

use super::{
    OK, options,
    support::{Proxy, Raw, RedisServer, command, resp::shown},
};

/// In a transaction, which changes them with EXEC; and on a connection that nothing is answered on.
#[test]
fn users_are_changed_in_other_ways_too() {
    const CHANGE: &str = "ACL SETUSER default off";
    const SILENCE: &str = "CLIENT REPLY OFF";
    for way in [
        &["MULTI", CHANGE, "EXEC"][..],
        &["MULTI", SILENCE, CHANGE, "EXEC"],
        &[SILENCE, "MULTI", CHANGE, "EXEC"],
        &[SILENCE, CHANGE],
    ] {
        let (direct, behind, target) = (
            RedisServer::start(&[]),
            RedisServer::start(&[]),
            RedisServer::start(&[]),
        );
        let proxy = Proxy::start(options(behind.url(), target.url(), ""));
        for address in [direct.address(), proxy.address()] {
            let newcomer = || Raw::connect(&address).ask(&["GET", "a"]);
            let (mut admin, mut early) = (Raw::connect(&address), Raw::connect(&address));
            assert_eq!(early.ask(&["SET", "a", "1"]), OK);
            for line in way {
                // Nothing has happened yet.
                assert_eq!(newcomer(), b"$1\r\n1\r\n", "{address} {way:?} before {line}");
                let words: Vec<&str> = line.split(' ').collect();
                admin.send(&command(&words));
                sleep(Duration::from_millis(200));
            }
            let answer = newcomer();
            assert!(answer.starts_with(b"-NOAUTH"), "{address} {way:?}: {}", shown(&answer));
            assert_eq!(early.ask(&["GET", "a"]), b"$1\r\n1\r\n", "{address} {way:?}");
        }
    }
}

/// Its connections end at Redis, and it may be on its way to another database.
#[test]
fn who_is_deleted_while_it_selects_is_not_left_waiting() {
    const ROUNDS: u32 = 10;
    let (behind, target) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::start(options(behind.url(), target.url(), ""));
    let mut admin = Raw::connect(&proxy.address());
    for _ in 0..ROUNDS {
        assert_eq!(admin.ask(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all"]), OK);
        let (mut there, mut going) = (Raw::connect(&proxy.address()), Raw::connect(&proxy.address()));
        for client in [&mut there, &mut going] {
            assert_eq!(client.ask(&["AUTH", "ann", "pw"]), OK);
        }
        assert_eq!(there.ask(&["SELECT", "1"]), OK);
        assert_eq!(there.ask(&["GET", "a"]), b"$-1\r\n");
        behind.freeze();
        admin.send(&command(&["ACL", "DELUSER", "ann"]));
        sleep(Duration::from_millis(20));
        going.send(&command(&["SELECT", "1"]));
        sleep(Duration::from_millis(20));
        behind.thaw();
        assert_eq!(admin.frame(), b":1\r\n");
        let (answer, closed) = going.until_closed(Duration::from_secs(1));
        assert!(closed || answer.starts_with(b"-WRONGPASS"), "{}", shown(&answer));
    }
}

/// No new connection could be brought to where they are: strangers are not let in any more, and these users may not choose a database.
#[test]
fn who_chose_a_database_before_it_authenticated_stays_there() {
    let (direct, behind, target) = (
        RedisServer::start(&[]),
        RedisServer::start(&[]),
        RedisServer::start(&[]),
    );
    let proxy = Proxy::start(options(behind.url(), target.url(), ""));
    for address in [direct.address(), proxy.address()] {
        for (protocol, way) in [
            ("2", &["AUTH", "ann", "pw"][..]),
            ("3", &["AUTH", "ann", "pw"]),
            ("2", &["HELLO", "3", "AUTH", "ann", "pw"]),
        ] {
            let (mut admin, mut client) = (Raw::connect(&address), Raw::connect(&address));
            let ann = ["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+get", "+multi", "+exec"];
            assert_eq!(admin.ask(&ann), OK);
            assert_eq!(admin.ask(&["SET", "a", "0"]), OK);
            client.ask(&["HELLO", protocol]);
            assert_eq!(client.ask(&["SELECT", "2"]), OK);
            assert_eq!(client.ask(&["SET", "a", "2"]), OK);
            assert_eq!(client.ask(&["ACL", "SETUSER", "default", "off"]), OK);
            let answer = client.ask(way);
            assert!(!answer.starts_with(b"-"), "{address} {way:?}: {}", shown(&answer));
            for _ in 0..2 {
                assert_eq!(client.ask(&["GET", "a"]), b"$1\r\n2\r\n", "{address} {way:?}");
                assert_eq!(client.ask(&["MULTI"]), OK);
                assert_eq!(client.ask(&["GET", "a"]), b"+QUEUED\r\n");
                assert_eq!(client.ask(&["EXEC"]), b"*1\r\n$1\r\n2\r\n");
            }
            let answer = client.ask(&["SELECT", "2"]);
            assert!(answer.starts_with(b"-NOPERM"), "{address} {way:?}: {}", shown(&answer));
            assert_eq!(admin.ask(&["ACL", "SETUSER", "default", "on"]), OK);
        }
    }
}

/// Who was let in before that is let in no more can still go where it has not been.
#[test]
fn who_was_there_before_users_were_changed_can_choose_another_database() {
    let (direct, behind, target) = (
        RedisServer::start(&[]),
        RedisServer::start(&[]),
        RedisServer::start(&[]),
    );
    let proxy = Proxy::start(options(behind.url(), target.url(), ""));
    for address in [direct.address(), proxy.address()] {
        let mut client = Raw::connect(&address);
        assert_eq!(client.ask(&["SET", "a", "0"]), OK);
        assert_eq!(client.ask(&["ACL", "SETUSER", "default", "off"]), OK);
        for (db, way) in [
            ("3", &[&["SELECT", "3"][..]][..]),
            ("4", &[&["MULTI"], &["SELECT", "4"], &["EXEC"]]),
        ] {
            for command in way {
                let answer = client.ask(command);
                assert!(!answer.starts_with(b"-"), "{address} {command:?}: {}", shown(&answer));
            }
            assert_eq!(client.ask(&["SET", "a", db]), OK, "{address} {db}");
            let value = format!("$1\r\n{db}\r\n");
            assert_eq!(client.ask(&["GET", "a"]), value.as_bytes(), "{address}");
        }
        let answer = client.ask(&["HELLO", "3"]);
        assert!(answer.starts_with(b"%"), "{address}: {}", shown(&answer));
        assert_eq!(client.ask(&["GET", "a"]), b"$1\r\n4\r\n", "{address}");
    }
}

/// Of those there are two: none that is opened behind the change takes their place.
#[test]
fn who_was_there_before_users_were_changed_gets_connections_that_were_there_too() {
    let (direct, behind, target) = (
        RedisServer::start(&[]),
        RedisServer::start(&[]),
        RedisServer::start(&[]),
    );
    let proxy = Proxy::start(options(behind.url(), target.url(), ""));
    for address in [direct.address(), proxy.address()] {
        let (mut first, mut second) = (Raw::connect(&address), Raw::connect(&address));
        for client in [&mut first, &mut second] {
            assert_eq!(client.ask(&["SET", "a", "1"]), OK);
        }
        assert_eq!(first.ask(&["ACL", "SETUSER", "default", "off"]), OK);
        // Refused, it takes nothing away.
        for _ in 0..3 {
            assert!(first.ask(&["SELECT", "x"]).starts_with(b"-ERR"), "{address}");
        }
        assert_eq!(first.ask(&["CLIENT", "GETNAME"]), b"$-1\r\n", "{address}");
        // Spares are looked after now and then.
        sleep(Duration::from_millis(1500));
        assert_eq!(second.ask(&["MULTI"]), OK, "{address}");
        assert_eq!(second.ask(&["GET", "a"]), b"+QUEUED\r\n", "{address}");
        assert_eq!(second.ask(&["EXEC"]), b"*1\r\n$1\r\n1\r\n", "{address}");
    }
}

/// Redis 7 reads it from left to right, and has obeyed the first option when it finds fault with the second.
#[test]
fn a_hello_that_is_refused_may_have_changed_who_the_client_is() {
    let (direct, behind, target) = (
        RedisServer::start(&[]),
        RedisServer::start(&[]),
        RedisServer::start(&[]),
    );
    let proxy = Proxy::start(options(behind.url(), target.url(), ""));
    let mut answers = [direct.address(), proxy.address()].map(|address| {
        let mut admin = Raw::connect(&address);
        assert_eq!(admin.ask(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all"]), OK);
        let ways: [&[&str]; 5] = [
            &["HELLO", "3", "AUTH", "ann", "pw", "SETNAME", "two words"],
            &["HELLO", "3", "AUTH", "ann", "pw", "NONSENSE"],
            &["HELLO", "3", "SETNAME", "one", "AUTH", "ann", "wrong"],
            &["HELLO", "4", "AUTH", "ann", "pw"],
            &["HELLO", "3", "NONSENSE", "AUTH", "ann", "pw"],
        ];
        ways.map(|way| {
            let mut client = Raw::connect(&address);
            assert_eq!(client.ask(&["SELECT", "1"]), OK);
            assert!(client.ask(way).starts_with(b"-"), "{address} {way:?}");
            [&["ACL", "WHOAMI"][..], &["CLIENT", "GETNAME"], &["ACL", "WHOAMI"]].map(|command| client.ask(command))
        })
    });
    let [direct, proxied] = answers.each_mut();
    assert_eq!(direct, proxied);
}

#[test]
fn who_comes_after_users_were_changed_is_treated_as_a_newcomer() {
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        users.path(),
        "user default on nopass ~* &* +@all\nuser web on >web-pass ~* &* +@all\n",
    )
    .unwrap();
    let file = users.path().to_str().unwrap();
    let (direct, behind, target) = (
        RedisServer::start(&["--aclfile", file]),
        RedisServer::start(&["--aclfile", file]),
        RedisServer::start(&[]),
    );
    let proxy = Proxy::start(options(behind.url(), target.url(), ""));
    for address in [direct.address(), proxy.address()] {
        let mut admin = Raw::connect(&address);
        let mut web = Raw::connect(&address);
        for client in [&mut admin, &mut web] {
            assert_eq!(client.ask(&["SELECT", "3"]), OK);
        }
        assert_eq!(web.ask(&["AUTH", "web", "web-pass"]), OK);
        assert_eq!(web.ask(&["SET", "a", "1"]), OK);
        assert_eq!(admin.ask(&["ACL", "SETUSER", "default", "off"]), OK);
        for command in [
            &["SELECT", "3"][..],
            &["GET", "a"],
            &["MULTI"],
            &["EVAL", "return 1", "0"],
        ] {
            let answer = Raw::connect(&address).ask(command);
            assert!(answer.starts_with(b"-NOAUTH"), "{address} {command:?}");
        }
        // Who was there before goes on.
        assert_eq!(admin.ask(&["SET", "b", "1"]), OK);
        assert_eq!(admin.ask(&["MULTI"]), OK);
        assert_eq!(admin.ask(&["EXEC"]), b"*0\r\n");
        assert_eq!(web.ask(&["GET", "a"]), b"$1\r\n1\r\n");
        // All of a user's connections end when the users are read anew, but for those of the default one.
        assert_eq!(admin.ask(&["ACL", "LOAD"]), OK);
        assert_eq!(
            web.until_closed(Duration::from_secs(5)),
            (Vec::new(), true),
            "{address}"
        );
        assert_eq!(admin.ask(&["GET", "b"]), b"$1\r\n1\r\n");
        assert_eq!(Raw::connect(&address).ask(&["SELECT", "3"]), OK);
    }
}
