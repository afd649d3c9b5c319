//! Questions about names outside the cluster: asked of the upstream servers, one after the other,
//! with bounded concurrency, and kept for a short while.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{RData, Record},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::limits;

pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    /// The server that answered last is asked first.
    first: AtomicUsize,
    permits: Semaphore,
    cache: Mutex<Cache>,
}

/// Why there is no answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    /// No upstream servers are configured.
    Off,
    /// Too many questions are being asked already.
    Busy,
    /// None of the servers answered in time.
    Unanswered,
}

impl Forwarder {
    pub(crate) fn new(mut upstreams: Vec<SocketAddr>) -> Self {
        upstreams.truncate(limits::UPSTREAMS);
        Forwarder {
            upstreams,
            first: AtomicUsize::new(0),
            permits: Semaphore::new(limits::FORWARDS),
            cache: Mutex::new(Cache::default()),
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.upstreams.is_empty()
    }

    /// An answer kept from before, its times to live counted down.
    pub(crate) fn cached(&self, query: &Query, dnssec: bool) -> Option<Message> {
        self.cache.lock().get(&key(query, dnssec), Instant::now())
    }

    /// Asks upstream. The answer has the upstream's sections and code; its id means nothing.
    pub(crate) async fn ask(&self, query: &Query, dnssec: bool) -> Result<Message, Refusal> {
        if self.is_off() {
            return Err(Refusal::Off);
        }
        let _permit = self.permits.try_acquire().map_err(|_| Refusal::Busy)?;
        let asking = timeout(limits::FORWARD_TIMEOUT, self.ask_all(query, dnssec));
        let answer = asking.await.map_err(|_| Refusal::Unanswered)??;
        self.cache.lock().put(key(query, dnssec), &answer, Instant::now());
        Ok(answer)
    }

    async fn ask_all(&self, query: &Query, dnssec: bool) -> Result<Message, Refusal> {
        let first = self.first.load(Ordering::Relaxed);
        let mut failed = None;
        for n in 0..self.upstreams.len() * limits::UPSTREAM_ROUNDS {
            let at = (first + n) % self.upstreams.len();
            match timeout(limits::UPSTREAM_TIMEOUT, ask_one(self.upstreams[at], query, dnssec)).await {
                Ok(Ok(answer))
                    if !matches!(answer.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused) =>
                {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                // A server that says it cannot is believed only if no other can.
                Ok(Ok(answer)) => failed = Some(answer),
                Ok(Err(error)) => {
                    tracing::debug!(%error, upstream = %self.upstreams[at], "an upstream DNS server failed")
                }
                Err(_) => tracing::debug!(upstream = %self.upstreams[at], "an upstream DNS server did not answer"),
            }
        }
        failed.ok_or(Refusal::Unanswered)
    }
}

async fn ask_one(upstream: SocketAddr, query: &Query, dnssec: bool) -> io::Result<Message> {
    let id: u16 = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(limits::UDP_ANSWER as u16).set_version(0);
    edns.set_dnssec_ok(dnssec);
    message.set_edns(edns);
    let request = message.to_vec().map_err(io::Error::other)?;

    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(&request).await?;
    let mut buffer = vec![0; limits::UDP_REQUEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything that is not the answer to this question may be forged: wait on.
        let Ok(answer) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        if !answers(&answer, id, query) {
            continue;
        }
        if answer.metadata.truncation {
            return ask_tcp(upstream, &request, id, query).await;
        }
        return Ok(answer);
    }
}

async fn ask_tcp(upstream: SocketAddr, request: &[u8], id: u16, query: &Query) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(request).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if answers(&answer, id, query) { Ok(answer) } else { Err(io::Error::other("the answer is to another question")) }
}

fn answers(answer: &Message, id: u16, query: &Query) -> bool {
    answer.metadata.id == id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries.len() == 1
        && answer.queries[0] == *query
}

/// Name in lower case, type, class, and whether DNSSEC records are wanted.
type Key = (String, u16, u16, bool);

fn key(query: &Query, dnssec: bool) -> Key {
    let name = query.name().to_ascii().to_ascii_lowercase();
    (name, query.query_type().into(), query.query_class().into(), dnssec)
}

#[derive(Default)]
struct Cache {
    entries: HashMap<Key, Entry>,
    /// In order of arrival: the oldest goes first when the cache is full.
    order: VecDeque<(Key, Instant)>,
}

struct Entry {
    message: Message,
    stored: Instant,
    lives: Duration,
}

impl Cache {
    fn get(&mut self, key: &Key, now: Instant) -> Option<Message> {
        let entry = self.entries.get(key)?;
        let age = now.duration_since(entry.stored);
        if age >= entry.lives {
            return None;
        }
        let mut message = entry.message.clone();
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.decrement_ttl(seconds);
        }
        Some(message)
    }

    fn put(&mut self, key: Key, message: &Message, now: Instant) {
        let Some(seconds) = lifetime(message) else {
            return;
        };
        let entry = Entry { message: message.clone(), stored: now, lives: Duration::from_secs(seconds.into()) };
        self.entries.insert(key.clone(), entry);
        self.order.push_back((key, now));
        while self.order.len() > limits::CACHE_ENTRIES {
            let Some((oldest, stored)) = self.order.pop_front() else {
                break;
            };
            if self.entries.get(&oldest).is_some_and(|e| e.stored == stored) {
                self.entries.remove(&oldest);
            }
        }
    }
}

/// Seconds an answer may be kept; `None` for one that may not. Negative answers live as long as
/// their SOA record says (RFC 2308, 5).
fn lifetime(message: &Message) -> Option<u32> {
    let least = |records: &[Record]| records.iter().map(|r| r.ttl).min();
    let seconds = match message.metadata.response_code {
        ResponseCode::NoError if !message.answers.is_empty() => least(&message.answers)?.min(limits::CACHE_TTL),
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = message.authorities.iter().find_map(|r| match &r.data {
                RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
                _ => None,
            });
            soa?.min(limits::CACHE_TTL_NEGATIVE)
        }
        _ => return None,
    };
    (seconds > 0).then_some(seconds)
}

/// The nameservers of a `resolv.conf`, without those in `not` (this server's own addresses).
pub fn upstreams_from(resolv_conf: &str, not: &[IpAddr]) -> Vec<SocketAddr> {
    let mut upstreams = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A zone index (fe80::1%eth0) is not supported here and skipped with the address.
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        let server = SocketAddr::new(address, 53);
        if !not.contains(&address) && !upstreams.contains(&server) {
            upstreams.push(server);
        }
    }
    upstreams
}
