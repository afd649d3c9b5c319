//! The asking side: a plain HTTP/1.1 GET and a UDP question, each with a time limit.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs, UdpSocket},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks `url` at most `times` times, each over a new connection; ends early once `distinct`
/// different first lines have come (0: never). Prints each body, or for `distinct` the count of each.
pub(crate) fn get(url: &str, times: u32, distinct: u32) -> Result<(), String> {
    let rest = url.strip_prefix("http://").ok_or("the URL must begin with http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut seen = BTreeMap::<String, u32>::new();
    for _ in 0..times {
        let body = get_once(&address, host, path).map_err(|e| format!("GET {url}: {e}"))?;
        if distinct == 0 {
            print!("{body}");
            continue;
        }
        *seen.entry(body.lines().next().unwrap_or_default().to_owned()).or_default() += 1;
        if seen.len() >= distinct as usize {
            break;
        }
    }
    for (name, count) in &seen {
        println!("{count:>4} {name}");
    }
    if seen.len() < distinct as usize {
        return Err(format!("{} of {distinct} different answers in {times} requests", seen.len()));
    }
    Ok(())
}

fn get_once(address: &str, host: &str, path: &str) -> Result<String, String> {
    let target = address.to_socket_addrs().map_err(|e| e.to_string())?.next().ok_or("no address")?;
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|e| e.to_string())?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is cut short")?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(head.lines().next().unwrap_or_default().to_owned()),
    }
}

pub(crate) fn udp(address: &str, text: &str) -> Result<(), String> {
    let target = address.to_socket_addrs().map_err(|e| e.to_string())?.next().ok_or("no address")?;
    let local = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let ask = || -> std::io::Result<String> {
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send_to(text.as_bytes(), target)?;
        let mut buffer = [0; 2048];
        let (length, _) = socket.recv_from(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    print!("{}", ask().map_err(|e| format!("udp {address}: {e}"))?);
    Ok(())
}
