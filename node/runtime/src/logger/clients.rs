//! Attached clients: each gets every byte from its connection on, in frames of stream, length, data.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::poll::{PollFd, PollFlags};

use super::Stream;
use crate::limits;

/// All of one container's clients.
#[derive(Default)]
pub(super) struct Clients(Vec<Client>);

struct Client {
    stream: UnixStream,
    queue: VecDeque<u8>,
    broken: bool,
}

impl Clients {
    pub(super) fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.0.len() < limits::ATTACHED && stream.set_nonblocking(true).is_ok() {
                self.0.push(Client {
                    stream, // An empty frame: from now on it misses nothing.
                    queue: VecDeque::from([Stream::Stdout as u8, 0, 0, 0, 0]),
                    broken: false,
                });
            }
        }
    }

    pub(super) fn send(&mut self, stream: Stream, data: &[u8]) {
        for client in &mut self.0 {
            // One that does not read is cut off: the container must not wait for it.
            client.broken |= client.queue.len() + data.len() > limits::ATTACH_QUEUE;
            client.queue.push_back(stream as u8);
            client.queue.extend((data.len() as u32).to_be_bytes());
            client.queue.extend(data);
        }
    }

    /// Writes what can be written, forgets those that have gone.
    pub(super) fn serve(&mut self) {
        for client in &mut self.0 {
            client.write();
        }
        self.0.retain(|client| !client.broken);
    }

    /// What to wait for: room, or the end of the client.
    pub(super) fn poll(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.0.iter().map(|client| {
            let room = if client.queue.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            PollFd::new(client.stream.as_fd(), room | PollFlags::POLLIN)
        })
    }

    /// The container has ended: the rest goes out, for as long as a client takes it without delay.
    pub(super) fn finish(&mut self) {
        for client in &mut self.0 {
            let _ = client.stream.set_nonblocking(false);
            let _ = client.stream.set_write_timeout(Some(limits::ATTACH_END));
            client.write();
        }
    }
}

impl Client {
    fn write(&mut self) {
        while !self.broken && !self.queue.is_empty() {
            match self.stream.write(self.queue.as_slices().0) {
                Ok(0) => self.broken = true,
                Ok(length) => drop(self.queue.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
        // A client says nothing: what can be read from it is its end.
        self.broken |= self.queue.is_empty() && gone(&self.stream);
    }
}

fn gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let ready = nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO);
    ready.is_ok_and(|count| count > 0)
}
