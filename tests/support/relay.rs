//! A relay in front of a server, which sees what it passes and may change it.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread::spawn,
};

/// Starts one, and answers where it listens. `asked` gets each piece that goes to the server, `answered` each that comes
/// back; what they return is passed on.
pub fn start(
    server: String,
    asked: impl Fn(&[u8]) -> Vec<u8> + Clone + Send + 'static,
    answered: impl Fn(&[u8]) -> Vec<u8> + Clone + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (asked, answered) = (asked.clone(), answered.clone());
            spawn(move || pass(from, to, asked));
            spawn(move || pass(server, client, answered));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, change: impl Fn(&[u8]) -> Vec<u8>) {
    let mut chunk = [0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        if to.write_all(&change(&chunk[..length])).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
