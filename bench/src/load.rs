//! A small load generator: HTTP/1.1 GETs in a closed loop, a thread per connection.
//!
//! It sends no more than the given number of connections at a time and stops by the clock, by count or
//! after too many failures.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::limits;

/// How requests share connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// One connection per thread for all its requests.
    Kept,
    /// A connection per request; the server closes it.
    Fresh,
}

/// What came of a load.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Of every answered request, in microseconds; the connection's making counts where it is fresh.
    pub(crate) latencies: Vec<f64>,
    pub(crate) failed: usize,
    pub(crate) seconds: f64,
}

impl Outcome {
    /// Answered requests per second.
    pub(crate) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss)]
        let answered = self.latencies.len() as f64;
        if self.seconds > 0.0 { answered / self.seconds } else { 0.0 }
    }
}

/// Asks both targets from `threads` threads until `time` is over, each thread one target after the other, so that
/// both meet the same machine at the same moment. `seconds` is the time spent on a target. Blocks.
pub(crate) fn run(targets: [SocketAddr; 2], connections: Connections, threads: usize, time: Duration) -> [Outcome; 2] {
    let end = Instant::now() + time;
    let parts: Vec<[Outcome; 2]> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(move || ask(targets, connections, threads, end))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    let mut all = [Outcome::default(), Outcome::default()];
    #[expect(clippy::cast_precision_loss)]
    let threads = threads as f64;
    for (whole, part) in parts.into_iter().flat_map(|part| [0, 1].into_iter().zip(part)) {
        all[whole].latencies.extend(part.latencies);
        all[whole].failed += part.failed;
        all[whole].seconds += part.seconds / threads;
    }
    all
}

/// One request over a connection of its own.
pub(crate) fn once(target: SocketAddr) -> io::Result<()> {
    exchange(&mut connect(target)?, Connections::Fresh)
}

fn ask(targets: [SocketAddr; 2], connections: Connections, threads: usize, end: Instant) -> [Outcome; 2] {
    let mut outcomes = [Outcome::default(), Outcome::default()];
    let mut kept: [Option<TcpStream>; 2] = [None, None];
    for turn in 0..limits::TRAFFIC_REQUESTS / threads {
        let at = turn % 2;
        let outcome = &mut outcomes[at];
        if Instant::now() >= end || outcome.failed >= limits::TRAFFIC_FAILURES {
            break;
        }
        let begun = Instant::now();
        let done = match kept[at].take() {
            Some(mut stream) => exchange(&mut stream, connections).map(|()| stream),
            None => connect(targets[at]).and_then(|mut stream| exchange(&mut stream, connections).map(|()| stream)),
        };
        let took = begun.elapsed().as_secs_f64();
        outcome.seconds += took;
        match done {
            Ok(stream) => {
                outcome.latencies.push(took * 1e6);
                kept[at] = Some(stream).filter(|_| connections == Connections::Kept);
            }
            Err(_) => outcome.failed += 1,
        }
    }
    outcomes
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, limits::REQUEST)?;
    stream.set_read_timeout(Some(limits::REQUEST))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, connections: Connections) -> io::Result<()> {
    let request: &[u8] = match connections {
        Connections::Kept => b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n",
        Connections::Fresh => b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n",
    };
    stream.write_all(request)?;
    let mut buffer = [0; limits::ANSWER];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        filled += read;
        match (connections, length(&buffer[..filled])?) {
            (Connections::Kept, Some(whole)) if filled >= whole => return Ok(()),
            // Reading up to the server's close leaves the ended connection's state with the server.
            (Connections::Fresh, Some(whole)) if read == 0 && filled >= whole => return Ok(()),
            _ if read == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}

/// Length of the whole answer, once its head is there; an answer that is not a 200 is an error.
fn length(answer: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = String::from_utf8_lossy(&answer[..head]);
    if !text.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(text.lines().next().unwrap_or_default().to_owned()));
    }
    let body = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    body.map(|body| Some(head + 4 + body)).ok_or_else(|| io::Error::other("an answer without its length"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    /// A server that answers with `answer`, on loopback; counts its connections. Ends with the process.
    fn server(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&count);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || answer_all(stream, answer));
            }
        });
        (address, count)
    }

    fn answer_all(mut stream: TcpStream, answer: &str) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut close = false;
        while let Some(Ok(line)) = lines.next() {
            close |= line == "Connection: close";
            if line.is_empty() {
                stream.write_all(answer.as_bytes()).unwrap();
                if close {
                    return;
                }
            }
        }
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    #[test]
    fn kept_connections_are_one_per_thread_and_target() {
        let (address, count) = server(GOOD);
        let outcome = run([address; 2], Connections::Kept, 2, Duration::from_millis(100));
        for one in &outcome {
            assert!(one.latencies.len() > 2 && one.rate() > 0.0 && one.failed == 0, "{one:?}");
        }
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn fresh_connections_are_one_per_request() {
        let (address, count) = server(GOOD);
        let outcome = run([address; 2], Connections::Fresh, 2, Duration::from_millis(100));
        let asked: usize = outcome.iter().map(|one| one.latencies.len()).sum();
        assert_eq!((outcome[0].failed + outcome[1].failed, count.load(Ordering::SeqCst)), (0, asked));
    }

    #[test]
    fn failures_end_a_load_early() {
        let (address, _) = server("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
        let outcome = run([address; 2], Connections::Kept, 1, Duration::from_secs(60));
        assert_eq!((outcome[0].latencies.len(), outcome[0].failed), (0, limits::TRAFFIC_FAILURES));
        assert!(once(address).is_err());
    }

    #[test]
    fn an_answers_length_is_head_and_body() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(length(GOOD.as_bytes()).unwrap(), Some(GOOD.len()));
        assert_eq!(length(b"HTTP/1.1 200 OK\r\ncontent-length:  7\r\n\r\n").unwrap(), Some(46));
        assert!(length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
