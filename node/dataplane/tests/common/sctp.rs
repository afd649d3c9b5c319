//! SCTP for tests, on kernels that have its sockets: an association is a stream of bytes here, as a TCP connection is. Part of the
//! test programs that need it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen, socket,
};

use crate::common::PATIENCE;

/// With one address alone: others would stand in the packets.
fn at(address: &str) -> OwnedFd {
    let address: SocketAddr = address.parse().unwrap();
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    socket
}

/// Answers every message with the ends of its association.
pub(crate) fn server(address: &str) {
    let socket = at(address);
    listen(&socket, Backlog::new(8).unwrap()).unwrap();
    let listener = TcpListener::from(socket);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let text = format!("{} {}", stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                while let Ok(1..) = stream.read(&mut [0; 64]) {
                    stream.write_all(text.as_bytes()).unwrap();
                }
            });
        }
    });
}

/// Asks some times, and says which ends the server saw, and which peer this end.
pub(crate) fn ask(own: &str, to: &str) -> std::io::Result<(String, String)> {
    let mut association = Association::begin(own, to)?;
    let said = association.ask()?;
    Ok((said, association.0.peer_addr()?.to_string()))
}

pub(crate) struct Association(TcpStream);

impl Association {
    pub(crate) fn begin(own: &str, to: &str) -> std::io::Result<Association> {
        let socket = at(own);
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to.parse::<SocketAddr>().unwrap()))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Association(stream))
    }

    /// Which ends the server sees.
    pub(crate) fn ask(&mut self) -> std::io::Result<String> {
        let mut buffer = [0; 128];
        let mut length = 0;
        for size in [1, 30, 60] {
            self.0.write_all(&vec![7; size])?;
            length = self.0.read(&mut buffer)?;
        }
        Ok(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }
}
