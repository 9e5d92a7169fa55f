//! Ports that no other test takes.

use std::net::{TcpListener, UdpSocket};

/// A TCP port on loopback that stays this test's own while the value lives.
///
/// Servers here use TCP only, so the UDP port of the same number serves as a claim that every test process can see and
/// that the kernel takes back from one that dies. Ports come from below the range that outgoing connections use.
pub struct Port {
    number: u16,
    _claim: UdpSocket,
}

impl Port {
    pub fn free() -> Port {
        for _ in 0..1_000 {
            let number = rand::random_range(12_000..32_000);
            let Ok(claim) = UdpSocket::bind(("127.0.0.1", number)) else {
                continue;
            };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _claim: claim };
            }
        }
        panic!("found no free port");
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
