//! The TCP probe: a connection is enough.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Outcome, join};

/// Connects and closes.
pub async fn probe(host: &str, port: u16, timeout: Duration) -> Outcome {
    match connect(host, port, timeout).await {
        Ok(_) => Outcome::Success,
        Err(message) => Outcome::Failure(message),
    }
}

/// A connection, or what Go's dialer would have said.
pub async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = join(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        Ok(Err(e)) => Err(format!("dial tcp {address}: {}", dial_error(&e))),
        Ok(Ok(stream)) => Ok(stream),
    }
}

fn dial_error(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(code) => {
            let text = nix::errno::Errno::from_raw(code).desc().to_lowercase();
            let text = if code == libc::EHOSTUNREACH { "no route to host".to_owned() } else { text };
            format!("connect: {text}")
        }
        None => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn open_and_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(probe("127.0.0.1", port, Duration::from_secs(1)).await, Outcome::Success);
        drop(listener);
        let expected = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(probe("127.0.0.1", port, Duration::from_secs(1)).await, Outcome::Failure(expected));
    }
}
