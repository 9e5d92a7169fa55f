//! Blocking commands and published messages.

use super::*;

#[test]
fn blocking_commands_time_out_and_wake_as_in_redis() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        pair.compare(|address| {
            let mut transcript = Transcript::new();
            let mut waiting = Raw::connect(address);
            waiting.ask(&["HELLO".to_owned(), protocol.to_string()]);
            for line in [
                "BLPOP q 0.2",
                "BLMOVE q p LEFT RIGHT 0.2",
                "BZPOPMIN z 0.2",
                "XREAD BLOCK 200 STREAMS x $",
                "WAIT 0 0",
                "BLPOP q notanumber",
                "BLPOP q -1",
                "BLPOP q",
            ] {
                let began = Instant::now();
                let reply = waiting.ask(&words(line));
                let waited = began.elapsed();
                if reply.first() != Some(&b'-') && !line.starts_with("WAIT") {
                    assert!((150..1_500).contains(&waited.as_millis()), "{line} took {waited:?}");
                }
                transcript.push((line.to_owned(), reply));
            }
            for (line, wake) in [
                ("BLPOP a b q 10", "RPUSH q one two"),
                ("BRPOP r 10", "LPUSH r x"),
                ("BLMOVE m n LEFT RIGHT 10", "RPUSH m moved"),
                ("BZPOPMAX z 10", "ZADD z 1 low 2 high"),
                ("XREAD BLOCK 10000 STREAMS x $", "XADD x 1-1 field value"),
                ("BLMPOP 10 2 k1 k2 LEFT COUNT 2", "RPUSH k2 1 2 3"),
            ] {
                waiting.send(&[command(&words(line)), command(&["ECHO", "after"])].concat());
                sleep(Duration::from_millis(100));
                let mut other = Raw::connect(address);
                let began = Instant::now();
                transcript.push((wake.to_owned(), other.ask(&words(wake))));
                transcript.push((line.to_owned(), waiting.frame()));
                transcript.push(("ECHO after".to_owned(), waiting.frame()));
                assert!(
                    began.elapsed() < Duration::from_secs(2),
                    "{line} woke after {:?}",
                    began.elapsed()
                );
            }
            transcript
        });
    }
}

#[test]
fn a_client_that_leaves_while_blocked_takes_nothing() {
    let pair = Pair::start();
    pair.compare(|address| {
        let mut leaver = Raw::connect(address);
        leaver.send(&command(&["BLPOP", "queue", "0"]));
        sleep(Duration::from_millis(200));
        drop(leaver);
        sleep(Duration::from_millis(300));
        let mut client = Raw::connect(address);
        ["RPUSH queue job", "LLEN queue", "LPOP queue"]
            .iter()
            .map(|line| ((*line).to_owned(), client.ask(&words(line))))
            .collect()
    });
}

#[test]
fn a_blocked_client_holds_up_nobody() {
    let pair = Pair::start();
    let mut blocked: Vec<Raw> = (0..20).map(|_| Raw::connect(&pair.proxied())).collect();
    for client in &mut blocked {
        client.send(&command(&["BLPOP", "never", "3"]));
    }
    sleep(Duration::from_millis(100));
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(Raw::connect(&pair.proxied()).ask(&["PING"]), b"+PONG\r\n");
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}

#[test]
fn messages_arrive_as_from_redis() {
    let pair = Pair::start();
    for protocol in [2, 3] {
        pair.compare(|address| {
            let mut transcript = Transcript::new();
            let (mut listener, mut speaker) = (Raw::connect(address), Raw::connect(address));
            listener.ask(&["HELLO".to_owned(), protocol.to_string()]);
            let mut hear = |line: &str, frames: usize, listener: &mut Raw| {
                if !line.is_empty() {
                    listener.send(&command(&words(line)));
                }
                let got = listener.frames(frames).concat();
                transcript.push((format!("listener: {line}"), got));
            };
            hear("SUBSCRIBE one two", 2, &mut listener);
            hear("PSUBSCRIBE t*", 1, &mut listener);
            let said = speaker.ask(&["PUBLISH", "one", "hello"]);
            hear("", 1, &mut listener);
            let said_two = speaker.ask(&["PUBLISH", "two", "twice"]);
            hear("", 2, &mut listener);
            let said_none = speaker.ask(&["PUBLISH", "none", "x"]);
            hear("PING", 1, &mut listener);
            hear("PING text", 1, &mut listener);
            hear("GET key", 1, &mut listener);
            hear("UNSUBSCRIBE one", 1, &mut listener);
            let said_left = speaker.ask(&["PUBLISH", "one", "unheard"]);
            hear("UNSUBSCRIBE", 1, &mut listener);
            hear("PUNSUBSCRIBE t*", 1, &mut listener);
            hear("GET key", 1, &mut listener);
            hear("SSUBSCRIBE shard", 1, &mut listener);
            let said_shard = speaker.ask(&["SPUBLISH", "shard", "s"]);
            hear("", 1, &mut listener);
            hear("SUNSUBSCRIBE shard", 1, &mut listener);
            hear("UNSUBSCRIBE", 1, &mut listener);
            hear("PING", 1, &mut listener);
            let said_all = [said, said_two, said_none, said_left, said_shard].concat();
            transcript.push(("PUBLISH".to_owned(), said_all));
            let large = "m".repeat(1 << 20);
            listener.send(&command(&["SUBSCRIBE", "large"]));
            listener.frame();
            for _ in 0..20 {
                speaker.ask(&["PUBLISH", "large", &large]);
            }
            transcript.push(("large messages".to_owned(), listener.frames(20).concat()));
            transcript.push(("nothing more".to_owned(), listener.unasked(Duration::from_millis(100))));
            transcript
        });
    }
}

#[test]
fn client_side_caching_is_told_of_changes() {
    let pair = Pair::start();
    pair.compare(|address| {
        let (mut cached, mut other) = (Raw::connect(address), Raw::connect(address));
        let mut transcript = Transcript::new();
        for line in ["HELLO 3", "CLIENT TRACKING ON", "SET seen 1", "GET seen"] {
            transcript.push((line.to_owned(), cached.ask(&words(line))));
        }
        transcript.push(("SET by another".to_owned(), other.ask(&["SET", "seen", "2"])));
        transcript.push(("invalidation".to_owned(), cached.frame()));
        for line in ["GET seen", "CLIENT TRACKING OFF", "GET seen"] {
            transcript.push((line.to_owned(), cached.ask(&words(line))));
        }
        transcript.push(("SET by another".to_owned(), other.ask(&["SET", "seen", "3"])));
        transcript.push(("nothing more".to_owned(), cached.unasked(Duration::from_millis(200))));
        transcript
    });
}

#[test]
fn monitor_shows_other_clients_commands() {
    let pair = Pair::start();
    let mut watcher = Raw::connect(&pair.proxied());
    assert_eq!(watcher.ask(&["MONITOR"]), b"+OK\r\n");
    let mut client = Raw::connect(&pair.proxied());
    client.ask(&["SET", "watched-by-monitor", "1"]);
    let began = Instant::now();
    loop {
        let line = String::from_utf8_lossy(&watcher.frame()).into_owned();
        if line.contains("\"SET\" \"watched-by-monitor\" \"1\"") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "never shown");
    }
}
