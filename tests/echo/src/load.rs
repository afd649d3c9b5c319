//! The asking side as a load: one way straight to a pod and one over Services take turns, with kept and with short connections.
//! Each turn of both is a line of JSON.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

const TURN: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest until every address answers for the first time.
const BEGIN: Duration = Duration::from_secs(60);
/// A turn ends early after so many failures.
const FAILURES: u64 = 20;
const ANSWER: usize = 16 * 1024;

/// What came of a way's turn.
#[derive(Default)]
struct Turn {
    done: u64,
    failed: u64,
    seconds: f64,
}

pub(crate) fn run(rounds: u32, direct: &str, services: &str) -> Result<(), String> {
    let direct = addresses(direct)?;
    let services = addresses(services)?;
    direct.iter().chain(&services).try_for_each(|target| first_answer(*target))?;
    for kept in [true, false] {
        // The first round warms up.
        for round in 0..=rounds {
            let (direct, service) = (turn(&direct, kept), turn(&services, kept));
            if round > 0 {
                println!(
                    "{{\"kept\":{kept},\"direct\":[{},{:.6}],\"service\":[{},{:.6}],\"failed\":{}}}",
                    direct.done,
                    direct.seconds,
                    service.done,
                    service.seconds,
                    direct.failed + service.failed
                );
            }
        }
    }
    Ok(())
}

fn addresses(list: &str) -> Result<Vec<SocketAddr>, String> {
    list.split(',').map(|one| one.parse().map_err(|_| format!("{one:?} is no address with a port"))).collect()
}

/// Nothing tells a client when an address begins to work.
fn first_answer(target: SocketAddr) -> Result<(), String> {
    let begun = Instant::now();
    while let Err(error) = connect(target).and_then(|mut stream| ask(&mut stream, false)) {
        if begun.elapsed() > BEGIN {
            return Err(format!("{target} does not answer: {error}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn turn(targets: &[SocketAddr], kept: bool) -> Turn {
    let mut streams: Vec<Option<TcpStream>> = targets.iter().map(|_| None).collect();
    // Connections that are kept are made before the time begins.
    if kept {
        streams = targets.iter().map(|target| connect(*target).ok()).collect();
    }
    let mut turn = Turn::default();
    let begun = Instant::now();
    let mut at = 0;
    while begun.elapsed() < TURN && turn.failed < FAILURES {
        let stream = match streams[at].take() {
            Some(stream) => Ok(stream),
            None => connect(targets[at]),
        };
        match stream.and_then(|mut stream| ask(&mut stream, kept).map(|()| stream)) {
            Ok(stream) => {
                turn.done += 1;
                streams[at] = kept.then_some(stream);
            }
            Err(_) => turn.failed += 1,
        }
        at = (at + 1) % targets.len();
    }
    turn.seconds = begun.elapsed().as_secs_f64();
    turn
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request and its whole answer; a short connection is read up to the server's end of it.
fn ask(stream: &mut TcpStream, kept: bool) -> io::Result<()> {
    let request: &[u8] = if kept {
        b"GET / HTTP/1.1\r\nHost: load\r\n\r\n"
    } else {
        b"GET / HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n"
    };
    stream.write_all(request)?;
    let mut answer = [0; ANSWER];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut answer[filled..])?;
        filled += read;
        let whole = length(&answer[..filled])?.is_some_and(|length| filled >= length);
        match (whole, read) {
            (true, _) if kept => return Ok(()),
            (true, 0) => return Ok(()),
            (_, 0) => return Err(io::ErrorKind::UnexpectedEof.into()),
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
    use super::*;

    #[test]
    fn addresses_have_ports() {
        let both = addresses("10.0.0.1:80,[fd00::1]:8080").unwrap();
        assert_eq!((both.len(), both[1].port()), (2, 8080));
        assert_eq!(addresses("10.0.0.1"), Err("\"10.0.0.1\" is no address with a port".into()));
    }

    #[test]
    fn an_answers_length_is_head_and_body() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").unwrap(), Some(40));
        assert!(length(b"HTTP/1.1 503 No\r\n\r\n").is_err());
    }
}
