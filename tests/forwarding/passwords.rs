//! Passwords and users.

use super::*;

#[test]
fn a_password_is_asked_for_as_redis_asks() {
    let pair = Pair::start_with(&["--requirepass", "s3cret"]);
    for line in [
        "PING",
        "GET a",
        "HELLO 3",
        "AUTH wrong",
        "AUTH default wrong",
        "HELLO 3 AUTH default wrong",
        "AUTH a b c",
        "AUTH",
        "ECHO x",
        "SELECT 1",
        "MULTI",
        "SUBSCRIBE c",
        "nosuchcommand",
        "SET :1:django.contrib.sessions.cacheabc 1",
    ] {
        // Each on a connection of its own: some servers tire of one that keeps guessing.
        let ask = |address: &str| {
            let mut client = Raw::connect(address);
            let first = client.ask(&words(line));
            [first, client.ask(&["GET", "a"])].concat()
        };
        same(
            &vec![(line.to_owned(), ask(&pair.direct.address()))],
            &vec![(line.to_owned(), ask(&pair.proxied()))],
        );
    }
    let scenario = |address: &str| {
        let mut transcript = Transcript::new();
        let mut client = Raw::connect(address);
        for line in [
            "GET a",
            "AUTH wrong",
            "GET a",
            "AUTH s3cret",
            "SET a 1",
            "AUTH wrong",
            "GET a",
            "AUTH default s3cret",
            "GET a",
            "HELLO 3",
            "HELLO 2 AUTH default s3cret SETNAME me",
            "CLIENT GETNAME",
            "ACL WHOAMI",
            "RESET",
            "GET a",
            "HELLO 3 AUTH default s3cret",
            "GET a",
        ] {
            transcript.push((line.to_owned(), client.ask(&words(line))));
        }
        let mut client = Raw::connect(address);
        let all = ["AUTH s3cret", "SET p 1", "GET p", "QUIT"]
            .map(|line| command(&words(line)))
            .concat();
        client.send(&all);
        transcript.push((
            "AUTH in a pipeline".to_owned(),
            client.until_closed(Duration::from_secs(3)).0,
        ));
        let mut client = Raw::connect(address);
        client.send(b"*11\r\n");
        transcript.push((
            "a long command without a password".to_owned(),
            client.until_closed(Duration::from_secs(2)).0,
        ));
        let mut client = Raw::connect(address);
        client.send(b"*2\r\n$4\r\nECHO\r\n$20000\r\n");
        transcript.push((
            "a long bulk without a password".to_owned(),
            client.until_closed(Duration::from_secs(2)).0,
        ));
        transcript
    };
    same(&scenario(&pair.direct.address()), &scenario(&pair.proxied()));
}

#[test]
fn users_and_what_they_may_do_are_the_sources_own() {
    let pair = Pair::start();
    let scenario = |address: &str| {
        let mut transcript = Transcript::new();
        let mut client = Raw::connect(address);
        for line in [
            "ACL SETUSER bob on >hunter2 ~app:* +@read +set +multi +exec +hello +auth +reset &chat:*",
            "SET app:1 one",
            "SET other two",
            "AUTH bob wrong",
            "AUTH bob hunter2",
            "ACL WHOAMI",
            "GET app:1",
            "GET other",
            "SET other x",
            "DEL app:1",
            "PING",
            "FLUSHALL",
            "SUBSCRIBE private",
            "MULTI",
            "SET app:2 y",
            "SET other z",
            "EXEC",
            "EVAL \"return 1\" 0",
            "HELLO 3 AUTH bob hunter2",
            "GET other",
            "GET app:1",
            "RESET",
            "GET other",
        ] {
            transcript.push((line.to_owned(), client.ask(&words(line))));
        }
        // Somebody else, at the same time, is still who they were.
        let mut other = Raw::connect(address);
        for line in ["ACL WHOAMI", "GET other", "DEL other"] {
            transcript.push((line.to_owned(), other.ask(&words(line))));
        }
        transcript
    };
    same(&scenario(&pair.direct.address()), &scenario(&pair.proxied()));
}

#[test]
fn users_side_by_side_never_borrow_each_others_rights() {
    let pair = Pair::start();
    for server in [&pair.direct, &pair.behind] {
        server.ask::<()>(&["ACL", "SETUSER", "reader", "on", ">pw", "~*", "+get", "+auth"]);
    }
    let wrong = AtomicUsize::new(0);
    scope(|threads| {
        for number in 0..16 {
            let (address, wrong) = (pair.proxied(), &wrong);
            threads.spawn(move || {
                let mut client = Raw::connect(&address);
                let reader = number % 2 == 0;
                if reader {
                    client.ask(&["AUTH", "reader", "pw"]);
                }
                for round in 0..200 {
                    let reply = client.ask(&["SET".to_owned(), format!("k{number}"), round.to_string()]);
                    let refused = reply.starts_with(b"-NOPERM");
                    if refused != reader {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(wrong.load(Ordering::Relaxed), 0, "replies with another user's rights");
}
