//! The serving side: one thread a connection, at most [`MAX_CONNECTIONS`] of them.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::{SigSet, Signal};

const MAX_CONNECTIONS: usize = 4096;
const MAX_HEADER_BYTES: u64 = 16 * 1024;
const IDLE: Duration = Duration::from_secs(60);

struct State {
    name: String,
    healthy: AtomicBool,
    draining: AtomicBool,
    connections: AtomicUsize,
}

/// Serves until SIGTERM or SIGINT, then for `drain` seconds more (a rolling update's endpoints
/// disappear meanwhile), and returns.
pub(crate) fn run(http: u16, udp: u16, drain: u64) -> Result<(), String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|e| format!("cannot block signals: {e}"))?;

    let state = Arc::new(State {
        name: pod_name(),
        healthy: AtomicBool::new(true),
        draining: AtomicBool::new(false),
        connections: AtomicUsize::new(0),
    });
    let listener = bind(http, TcpListener::bind)?;
    let socket = bind(udp, UdpSocket::bind)?;
    println!("{} listens on tcp/{http} and udp/{udp}", state.name);
    thread::spawn({
        let state = Arc::clone(&state);
        move || accept(&listener, &state)
    });
    thread::spawn({
        let state = Arc::clone(&state);
        move || datagrams(&socket, &state)
    });
    let signal = signals.wait().map_err(|e| format!("cannot wait for signals: {e}"))?;
    state.draining.store(true, Ordering::Relaxed);
    println!("{} got {signal}, drains for {drain} s", state.name);
    thread::sleep(Duration::from_secs(drain));
    Ok(())
}

fn pod_name() -> String {
    env::var("POD_NAME")
        .ok()
        .or_else(|| fs::read_to_string("/etc/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unnamed".to_owned())
}

/// Binds dual stack, or IPv4 where the kernel has no IPv6.
fn bind<T>(port: u16, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> Result<T, String> {
    bind((Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_| bind(([0, 0, 0, 0], port).into()))
        .map_err(|e| format!("cannot listen on port {port}: {e}"))
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming().flatten() {
        if state.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            state.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let state = Arc::clone(state);
        thread::spawn(move || {
            // A connection's failure is its client's affair.
            let _ = answer_all(stream, &state);
            state.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn datagrams(socket: &UdpSocket, state: &State) {
    let mut buffer = [0; 2048];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        let answer = format!("{}\nclient {}\n{}\n", state.name, peer, text.trim_end());
        // Like any datagram, an answer may be lost.
        let _ = socket.send_to(answer.as_bytes(), peer);
    }
}

fn answer_all(stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let (code, body) = respond(&request, peer, state);
        let close = request.close || state.draining.load(Ordering::Relaxed);
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 {code}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        writer.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        if close {
            break;
        }
    }
    Ok(())
}

struct Request {
    path: String,
    close: bool,
}

/// Reads one request and drops its body; `None` at the end of the connection.
fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut head = reader.take(MAX_HEADER_BYTES);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
    let (mut close, mut body) = (line.contains("HTTP/1.0"), 0);
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let header = line.trim().to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("connection", value)) => close = value.contains("close"),
            Some(("content-length", value)) => body = value.trim().parse().unwrap_or(0),
            Some(_) => {}
        }
    }
    std::io::copy(&mut reader.take(body), &mut std::io::sink())?;
    Ok(Some(Request { path, close }))
}

fn respond(request: &Request, peer: SocketAddr, state: &State) -> (&'static str, String) {
    match request.path.as_str() {
        "/healthz" if state.healthy.load(Ordering::Relaxed) => ("200 OK", "ok\n".into()),
        "/healthz" => ("500 Internal Server Error", "failing on request\n".into()),
        "/healthz/fail" | "/healthz/pass" => {
            state.healthy.store(request.path.ends_with("pass"), Ordering::Relaxed);
            ("200 OK", "switched\n".into())
        }
        path => ("200 OK", format!("{}\nclient {}\npath {}\n", state.name, peer.ip().to_canonical(), path)),
    }
}
