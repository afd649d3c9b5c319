//! Sockets and messages: reads questions from UDP and TCP, asks the zone or the upstream servers, and
//! writes answers that fit. Questions about the cluster are answered without waiting for anything.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    answer::Answer,
    forward::{Forwarder, Refusal},
    informer::Shared,
    limits,
    stats::{Asked, Carrier, Stats},
};

pub(crate) struct Server {
    pub(crate) shared: Arc<Shared>,
    pub(crate) forwarder: Forwarder,
    pub(crate) stats: Arc<Stats>,
    tcp: Semaphore,
    turn: AtomicU64,
}

/// A request after the part that needs no waiting.
enum Step {
    /// Nothing is to be said.
    Silence,
    Reply(Message),
    /// The upstream servers are to be asked; their answer completes the reply.
    Ask {
        reply: Message,
        query: Query,
        dnssec: bool,
    },
}

impl Server {
    pub(crate) fn new(shared: Arc<Shared>, upstreams: Vec<SocketAddr>, stats: Arc<Stats>) -> Self {
        Server {
            shared,
            forwarder: Forwarder::new(upstreams),
            stats,
            tcp: Semaphore::new(limits::TCP_CONNECTIONS),
            turn: AtomicU64::new(0),
        }
    }

    /// Reads one UDP socket until `shutdown`.
    pub(crate) async fn serve_udp(
        self: Arc<Self>,
        socket: Arc<UdpSocket>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) {
        let mut buffer = vec![0; limits::UDP_REQUEST];
        loop {
            let (length, peer) = tokio::select! {
                () = shutdown.cancelled() => return,
                // An error is the echo of an answer a client no longer waits for.
                read = socket.recv_from(&mut buffer) => match read {
                    Ok(read) => read,
                    Err(_) => continue,
                },
            };
            let read = Instant::now();
            self.stats.requested(Carrier::Udp);
            let (step, limit) = self.step(&buffer[..length]);
            match step {
                Step::Silence => {}
                Step::Reply(reply) => {
                    self.stats.answered(reply.metadata.response_code, Asked::Nobody, read);
                    let _ = socket.send_to(&encode(reply, limit), peer).await;
                }
                Step::Ask { reply, query, dnssec } => {
                    if tasks.len() > limits::FORWARDS + limits::TCP_CONNECTIONS {
                        self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                    tasks.spawn(async move {
                        let reply = server.ask(reply, query, dnssec).await;
                        server.stats.answered(reply.metadata.response_code, Asked::Upstream, read);
                        let _ = socket.send_to(&encode(reply, limit), peer).await;
                    });
                }
            }
        }
    }

    /// Accepts TCP connections until `shutdown`.
    pub(crate) async fn serve_tcp(
        self: Arc<Self>,
        listener: TcpListener,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: without a pause this would spin.
                    tracing::warn!(%error, "DNS cannot accept a connection");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (server, shutdown) = (Arc::clone(&self), shutdown.clone());
            tasks.spawn(async move {
                let Ok(_permit) = server.tcp.try_acquire() else {
                    server.stats.dropped.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    // What ends a connection early is the client's affair.
                    _ = server.converse(stream) => {}
                }
            });
        }
    }

    /// Answers one connection's requests, in order, until it is idle or closed.
    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let request = match timeout(limits::TCP_IDLE, read_request(&mut stream)).await {
                Ok(request) => request?,
                Err(_) => return Ok(()),
            };
            let read = Instant::now();
            self.stats.requested(Carrier::Tcp);
            let (reply, asked) = match self.step(&request).0 {
                Step::Silence => return Ok(()),
                Step::Reply(reply) => (reply, Asked::Nobody),
                Step::Ask { reply, query, dnssec } => (self.ask(reply, query, dnssec).await, Asked::Upstream),
            };
            self.stats.answered(reply.metadata.response_code, asked, read);
            let reply = encode(reply, usize::from(u16::MAX));
            let mut framed = Vec::with_capacity(reply.len() + 2);
            framed.extend_from_slice(&(reply.len() as u16).to_be_bytes());
            framed.extend_from_slice(&reply);
            match timeout(limits::TCP_IDLE, stream.write_all(&framed)).await {
                Ok(written) => written?,
                Err(_) => return Ok(()),
            }
        }
    }

    /// What can be said without waiting.
    #[cfg(test)]
    pub(crate) fn reply(&self, request: &[u8]) -> Option<Message> {
        match self.step(request).0 {
            Step::Reply(reply) => Some(reply),
            _ => None,
        }
    }

    /// What a request comes to, and how many bytes a UDP answer to it may have: what its EDNS record
    /// offers, within our bounds.
    fn step(&self, request: &[u8]) -> (Step, usize) {
        let (plain, most) = (limits::UDP_ANSWER_PLAIN, limits::UDP_ANSWER);
        match Message::from_vec(request) {
            Ok(message) => {
                let offered = message.edns.as_ref().map(|e| usize::from(e.max_payload()));
                (self.message(message), offered.map_or(plain, |n| n.clamp(plain, most)))
            }
            Err(_) => (self.malformed(request), plain),
        }
    }

    fn message(&self, message: Message) -> Step {
        // An answer to an answer would never end.
        if message.metadata.message_type != MessageType::Query {
            return Step::Silence;
        }
        let mut reply = Message::new(message.metadata.id, MessageType::Response, message.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&message.metadata);
        reply.metadata.recursion_available = !self.forwarder.is_off();
        reply.add_queries(message.queries.iter().cloned());
        if let Some(asked) = &message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(limits::UDP_ANSWER as u16);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            reply.set_edns(edns);
            if asked.version() > 0 {
                return self.fail(reply, ResponseCode::BADVERS);
            }
        }
        if message.metadata.op_code != OpCode::Query {
            return self.fail(reply, ResponseCode::NotImp);
        }
        let [query] = &message.queries[..] else {
            return self.fail(reply, ResponseCode::FormErr);
        };
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || transfer {
            return self.fail(reply, ResponseCode::Refused);
        }
        let dnssec = message.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
        self.question(reply, query, dnssec)
    }

    fn question(&self, mut reply: Message, query: &Query, dnssec: bool) -> Step {
        if let Some(answer) = self.local(query.name(), query.query_type()) {
            reply.metadata.authoritative = true;
            if answer.code == ResponseCode::NXDomain && !self.shared.loaded() {
                // It may exist: the client is to ask again, not to remember that it does not.
                return self.fail(reply, ResponseCode::ServFail);
            }
            self.stats.cluster.fetch_add(1, Ordering::Relaxed);
            reply.metadata.response_code = answer.code;
            reply.answers = answer.answers;
            reply.authorities = answer.authorities;
            reply.additionals = answer.additionals;
            return match answer.follow.filter(|_| !self.forwarder.is_off()) {
                None => Step::Reply(self.rotated(reply)),
                Some(target) => {
                    let mut query = Query::query(target, query.query_type());
                    query.set_query_class(DNSClass::IN);
                    Step::Ask { reply, query, dnssec }
                }
            };
        }
        if let Some(known) = self.forwarder.cached(query, dnssec) {
            self.stats.forwarded.fetch_add(1, Ordering::Relaxed);
            complete(&mut reply, known);
            return Step::Reply(self.rotated(reply));
        }
        if self.forwarder.is_off() {
            return match is_reverse(query.name()) {
                // Nobody knows addresses better here, and tools that ask for every address go on.
                true => {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                    reply.add_authority(self.shared.zone.read().soa());
                    Step::Reply(reply)
                }
                false => self.fail(reply, ResponseCode::Refused),
            };
        }
        Step::Ask { reply, query: query.clone(), dnssec }
    }

    /// The zone's answer, CNAMEs to names of the cluster followed.
    fn local(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        let zone = self.shared.zone.read();
        let mut answer = zone.answer(name, kind)?;
        for _ in 0..limits::CNAME_LINKS {
            let Some(next) = answer.follow.as_ref().and_then(|target| zone.answer(target, kind)) else {
                break;
            };
            answer.answers.extend(next.answers);
            answer.authorities = next.authorities;
            answer.follow = next.follow;
        }
        Some(answer)
    }

    async fn ask(&self, mut reply: Message, query: Query, dnssec: bool) -> Message {
        let known = self.forwarder.cached(&query, dnssec);
        let answer = match known {
            Some(known) => Ok(known),
            None => self.forwarder.ask(&query, dnssec).await,
        };
        match answer {
            Ok(answer) => {
                self.stats.forwarded.fetch_add(1, Ordering::Relaxed);
                complete(&mut reply, answer);
                self.rotated(reply)
            }
            Err(refusal) => {
                let counter = if refusal == Refusal::Busy { &self.stats.dropped } else { &self.stats.failed };
                counter.fetch_add(1, Ordering::Relaxed);
                reply.metadata.response_code = ResponseCode::ServFail;
                reply
            }
        }
    }

    /// Clients take the first address: each answer starts with another one.
    fn rotated(&self, mut reply: Message) -> Message {
        let is_address = |r: &Record| matches!(r.record_type(), RecordType::A | RecordType::AAAA);
        let first = reply.answers.iter().position(is_address).unwrap_or(reply.answers.len());
        let run = &mut reply.answers[first..];
        if run.len() > 1 && run.iter().all(is_address) {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            run.rotate_left((turn % run.len() as u64) as usize);
        }
        reply
    }

    fn fail(&self, mut reply: Message, code: ResponseCode) -> Step {
        self.stats.failed.fetch_add(1, Ordering::Relaxed);
        reply.metadata.response_code = code;
        Step::Reply(reply)
    }

    /// Says so when at least the header of a request can be read.
    fn malformed(&self, request: &[u8]) -> Step {
        match request {
            [high, low, flags, _, _, _, _, _, _, _, _, _, ..] if flags & 0x80 == 0 => {
                let id = u16::from_be_bytes([*high, *low]);
                self.fail(Message::new(id, MessageType::Response, OpCode::Query), ResponseCode::FormErr)
            }
            _ => Step::Silence,
        }
    }
}

/// Adds an upstream answer to a reply (which may already hold the CNAME that led there).
fn complete(reply: &mut Message, answer: Message) {
    let local = !reply.answers.is_empty();
    reply.metadata.response_code = answer.metadata.response_code;
    reply.metadata.authentic_data = answer.metadata.authentic_data && !local;
    reply.answers.extend(answer.answers);
    reply.authorities = answer.authorities;
    reply.additionals = answer.additionals;
}

fn is_reverse(name: &Name) -> bool {
    let last = name.iter().next_back();
    last.is_some_and(|label| label.eq_ignore_ascii_case(b"arpa"))
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut request = vec![0; usize::from(length)];
    stream.read_exact(&mut request).await?;
    Ok(request)
}

/// The reply in at most `limit` bytes: first the additional records go, then as many answers as must,
/// marked as truncated.
pub(crate) fn encode(mut reply: Message, limit: usize) -> Vec<u8> {
    let fits = |reply: &Message| reply.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = fits(&reply) {
        return bytes;
    }
    reply.additionals.clear();
    if let Some(bytes) = fits(&reply) {
        return bytes;
    }
    reply.metadata.truncation = true;
    reply.authorities.clear();
    let answers = std::mem::take(&mut reply.answers);
    let (mut least, mut most) = (0, answers.len());
    while least < most {
        let middle = (least + most).div_ceil(2);
        reply.answers = answers[..middle].to_vec();
        match fits(&reply) {
            Some(_) => least = middle,
            None => most = middle - 1,
        }
    }
    reply.answers = answers[..least].to_vec();
    reply.to_vec().unwrap_or_default()
}

/// The addresses sockets are bound to, as far as they are addresses a client could use.
pub(crate) fn own_addresses(bound: &[SocketAddr]) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = bound.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    own.sort();
    own.dedup();
    own
}
