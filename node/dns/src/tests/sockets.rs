//! Stories over UDP and TCP on 127.0.0.1.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SOA},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{api, api::Api};
use crate::{Config, Dns, informer::Shared, limits};

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    address: SocketAddr,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

fn start(api: &Arc<Api>, upstreams: Vec<SocketAddr>) -> Running {
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let config = Config { cluster_domain: "cluster.local".to_owned(), listen, upstreams, ..Config::default() };
    let dns = Dns::new(api.client(), config).unwrap();
    let (address, shared) = (dns.local_addrs()[0], Arc::clone(&dns.shared));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(dns.run(shutdown.clone()));
    Running { address, shared, shutdown, task }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn udp_raw(server: SocketAddr, request: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(request).await.unwrap();
    let mut buffer = vec![0; 65536];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer.truncate(length);
    buffer
}

async fn udp(server: SocketAddr, message: &Message) -> Message {
    Message::from_vec(&udp_raw(server, &message.to_vec().unwrap()).await).unwrap()
}

async fn tcp(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    stream.write_all(&(bytes.len() as u16).to_be_bytes()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

/// Asks until the answer satisfies: the zone follows the API server in its own time.
async fn until(server: SocketAddr, name: &str, satisfied: impl Fn(&Message) -> bool) -> Message {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = udp(server, &query(name, RecordType::A)).await;
        if satisfied(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{name}: still {answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

const WEB: &str = "web.default.svc.cluster.local.";

#[tokio::test]
async fn the_zone_follows_the_api_server() {
    let web = |ip: &str| {
        api::service(
            "web",
            json!({"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]}),
        )
    };
    let pods = api::service("pods", json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    let slice = |ready: bool| {
        api::slice(
            "pods-1",
            "pods",
            json!([
                {"addresses": ["10.244.0.1"], "conditions": {"ready": true}, "hostname": "a"},
                {"addresses": ["10.244.0.2"], "conditions": {"ready": ready}},
                {"addresses": ["10.244.0.3"], "conditions": {}},
            ]),
        )
    };
    let api =
        Arc::new(Api::default().with_services(vec![web("10.96.0.1"), pods.clone()]).with_slices(vec![slice(false)]));
    let dns = start(&api, vec![]);
    let server = dns.address;
    let is = |expected: &'static [&'static str]| {
        move |m: &Message| {
            let mut data = data(m);
            data.sort();
            data == expected
        }
    };
    let not_there = |m: &Message| m.metadata.response_code == ResponseCode::NXDomain;

    let answer = until(server, WEB, is(&["10.96.0.1"])).await;
    assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
    assert!(!answer.metadata.recursion_available, "there are no upstream servers");
    assert_eq!(answer.metadata.id, 7);
    const PODS: &str = "pods.default.svc.cluster.local.";
    until(server, PODS, is(&["10.244.0.1", "10.244.0.3"])).await;
    assert!(dns.shared.loaded());

    api.slice_event("MODIFIED", &slice(true));
    until(server, PODS, is(&["10.244.0.1", "10.244.0.2", "10.244.0.3"])).await;
    until(server, "a.pods.default.svc.cluster.local.", is(&["10.244.0.1"])).await;
    api.slice_event("DELETED", &slice(true));
    until(server, PODS, not_there).await;
    api.service_event("MODIFIED", &web("10.96.0.2"));
    until(server, WEB, is(&["10.96.0.2"])).await;
    api.service_event("DELETED", &web("10.96.0.2"));
    until(server, WEB, not_there).await;

    // History lost: what the new list lacks is gone, what it has is there.
    api.service_event("ADDED", &web("10.96.0.4"));
    until(server, WEB, is(&["10.96.0.4"])).await;
    let other = api::service("other", json!({"clusterIP": "10.96.0.3"}));
    api.expire(vec![pods, other]);
    until(server, "other.default.svc.cluster.local.", is(&["10.96.0.3"])).await;
    until(server, WEB, not_there).await;
    dns.stop().await;
}

/// A server whose zone is filled by hand.
async fn filled() -> Running {
    let dns = start(&Arc::new(Api::default()), vec![]);
    fill(&dns).await;
    dns
}

async fn fill(dns: &Running) {
    // The empty lists come first, so that they do not take away what is put in here.
    until(dns.address, WEB, |m| m.metadata.response_code == ResponseCode::NXDomain).await;
    *dns.shared.zone.write() = super::zone();
}

#[tokio::test]
async fn udp_and_tcp_give_the_same_answer() {
    let dns = filled().await;
    let mut stream = TcpStream::connect(dns.address).await.unwrap();
    for name in ["pg.db.svc.cluster.local.", "WeB.default.svc.cluster.local.", "no.cluster.local."] {
        let (mut over_udp, mut over_tcp) =
            (udp(dns.address, &query(name, RecordType::A)).await, tcp(&mut stream, &query(name, RecordType::A)).await);
        assert_eq!(over_udp.queries[0].name().to_ascii(), name, "as it was asked, letter for letter");
        over_udp.answers.sort_by_key(|r| r.data.to_string());
        over_tcp.answers.sort_by_key(|r| r.data.to_string());
        assert_eq!(over_udp, over_tcp);
    }
    // Each answer starts with another address.
    let mut first = std::collections::HashSet::new();
    for _ in 0..3 {
        first.insert(data(&udp(dns.address, &query("pg.db.svc.cluster.local.", RecordType::A)).await)[0].clone());
    }
    assert_eq!(first.len(), 3);
    dns.stop().await;
}

#[tokio::test]
async fn large_answers_are_cut_to_what_the_client_takes() {
    let dns = filled().await;
    let endpoints = (0..200u8).map(|n| super::endpoint(&format!("10.244.9.{n}"), None, true)).collect();
    dns.shared.zone.write().set_slice(super::slice("db", "many", "pg", vec![], endpoints));
    let mut request = query("pg.db.svc.cluster.local.", RecordType::A);
    let mut whole = tcp(&mut TcpStream::connect(dns.address).await.unwrap(), &request).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 203);
    for (offered, limit) in [(None, 512), (Some(600), 600), (Some(100), 512), (Some(4096), limits::UDP_ANSWER)] {
        request.edns = offered.map(|size| {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            edns
        });
        let bytes = udp_raw(dns.address, &request.to_vec().unwrap()).await;
        assert!(bytes.len() <= limit && bytes.len() + 40 > limit, "{} of {limit} bytes", bytes.len());
        let cut = Message::from_vec(&bytes).unwrap();
        assert!(cut.metadata.truncation);
        assert_eq!(cut.edns.is_some(), offered.is_some());
        whole.answers.sort_by_key(|r| r.data.to_string());
        assert!(cut.answers.iter().all(|r| whole.answers.contains(r)));
    }
    dns.stop().await;
}

#[tokio::test]
async fn bad_requests_get_the_code_that_says_why() {
    let dns = filled().await;
    let code = async |message: &Message| udp(dns.address, message).await.metadata.response_code;
    let good = query(WEB, RecordType::A);
    assert_eq!(code(&good).await, ResponseCode::NoError);

    let mut chaos = good.clone();
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    assert_eq!(code(&chaos).await, ResponseCode::Refused);
    assert_eq!(code(&query("cluster.local.", RecordType::AXFR)).await, ResponseCode::Refused);
    let mut notify = good.clone();
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify).await, ResponseCode::NotImp);
    let mut two = good.clone();
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two).await, ResponseCode::FormErr);
    let mut future = good.clone();
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    assert_eq!(u16::from(code(&future).await), 16, "BADVERS");
    assert_eq!(code(&query("example.com.", RecordType::A)).await, ResponseCode::Refused);
    assert_eq!(code(&query("1.2.0.192.in-addr.arpa.", RecordType::PTR)).await, ResponseCode::NXDomain);

    // A name that runs past the end: the header is all there is to go by.
    let mut broken = good.to_vec().unwrap();
    broken.truncate(14);
    let answer = Message::from_vec(&udp_raw(dns.address, &broken).await).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (7, ResponseCode::FormErr));
    // To an answer, and to noise, nothing is said: the next datagram is the reply to the next request.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns.address).await.unwrap();
    let mut response = good.clone();
    response.metadata.message_type = MessageType::Response;
    response.metadata.id = 1;
    socket.send(&response.to_vec().unwrap()).await.unwrap();
    socket.send(&[1, 2, 3]).await.unwrap();
    socket.send(&good.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, 7);
    dns.stop().await;
}

/// An upstream server that tells each question and answers as it is told.
async fn upstream(
    answer: impl Fn(&Message, bool) -> Option<Message> + Send + Sync + 'static,
) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    // A port that is free for datagrams may be somebody's for connections.
    let (udp, address, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(address).await {
            break (udp, address, tcp);
        }
    };
    let (told, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            tokio::select! {
                read = udp.recv_from(&mut buffer) => {
                    let (length, peer) = read.unwrap();
                    let request = Message::from_vec(&buffer[..length]).unwrap();
                    let _ = told.send(format!("udp {}", request.queries[0]));
                    if let Some(answer) = answer(&request, true) {
                        // First someone else's answer, which must not be believed.
                        let mut forged = answer.clone();
                        forged.metadata.id ^= 1;
                        forged.answers.clear();
                        udp.send_to(&forged.to_vec().unwrap(), peer).await.unwrap();
                        udp.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
                    }
                }
                accepted = tcp.accept() => {
                    let (mut stream, _) = accepted.unwrap();
                    let length = stream.read_u16().await.unwrap();
                    let mut request = vec![0; usize::from(length)];
                    stream.read_exact(&mut request).await.unwrap();
                    let request = Message::from_vec(&request).unwrap();
                    let _ = told.send(format!("tcp {}", request.queries[0]));
                    let answer = answer(&request, false).unwrap().to_vec().unwrap();
                    stream.write_all(&(answer.len() as u16).to_be_bytes()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        }
    });
    (address, questions)
}

fn reply(request: &Message, addresses: &[[u8; 4]]) -> Message {
    let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(request.queries[0].clone());
    for address in addresses {
        let name = request.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(name, 300, RData::A(std::net::Ipv4Addr::from(*address).into())));
    }
    reply
}

#[tokio::test]
async fn outside_names_are_asked_upstream_and_kept() {
    let (good, mut asked) = upstream(|request, _| {
        let name = request.queries[0].name().to_ascii();
        if name.starts_with("missing") {
            let mut reply = reply(request, &[]);
            reply.metadata.response_code = ResponseCode::NXDomain;
            let root = Name::root();
            let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 60);
            reply.add_authority(Record::from_rdata(root, 60, RData::SOA(soa)));
            return Some(reply);
        }
        Some(reply(request, &[[192, 0, 2, 1]]))
    })
    .await;
    let (failing, mut tried) = upstream(|request, _| {
        let mut reply = reply(request, &[]);
        reply.metadata.response_code = ResponseCode::ServFail;
        Some(reply)
    })
    .await;
    let dns = start(&Arc::new(Api::default()), vec![failing, good]);
    fill(&dns).await;

    for round in 0..2 {
        let answer = udp(dns.address, &query("Example.com.", RecordType::A)).await;
        assert_eq!(data(&answer), ["192.0.2.1"], "round {round}");
        assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
        assert_eq!(answer.metadata.id, 7);
    }
    assert_eq!(tried.recv().await.unwrap(), "udp Example.com. IN A");
    assert_eq!(asked.recv().await.unwrap(), "udp Example.com. IN A");
    assert!(asked.try_recv().is_err(), "the second answer was kept from the first");
    for _ in 0..2 {
        let answer = udp(dns.address, &query("missing.example.com.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }
    assert!(asked.recv().await.unwrap().contains("missing"));
    assert!(asked.try_recv().is_err(), "not found is kept, too");
    assert!(tried.try_recv().is_err(), "the server that answered is asked first");

    // The alias of an outside name brings its address along; one inside needs nobody.
    let answer = udp(dns.address, &query("docs.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&answer), ["www.Example.com.", "192.0.2.1"]);
    assert!(asked.recv().await.unwrap().contains("www.Example.com."));
    let answer = udp(dns.address, &query("alias.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&answer), ["web.default.svc.cluster.local.", "10.96.0.5"]);
    assert!(asked.try_recv().is_err());
    dns.stop().await;
}

#[tokio::test]
async fn a_truncated_upstream_answer_is_asked_for_again_over_tcp() {
    let (server, mut asked) = upstream(|request, udp| {
        let mut reply = reply(request, if udp { &[] } else { &[[192, 0, 2, 1], [192, 0, 2, 2]] });
        reply.metadata.truncation = udp;
        Some(reply)
    })
    .await;
    let dns = start(&Arc::new(Api::default()), vec![server]);
    let answer = udp(dns.address, &query("big.example.com.", RecordType::A)).await;
    assert_eq!(answer.answers.len(), 2);
    assert!(asked.recv().await.unwrap().starts_with("udp"));
    assert!(asked.recv().await.unwrap().starts_with("tcp"));
    dns.stop().await;
}

#[tokio::test]
async fn until_the_cluster_is_known_absence_is_not_claimed() {
    let shared = Arc::new(Shared::new(super::zone()));
    let server = crate::server::Server::new(Arc::clone(&shared), vec![], Arc::default());
    let code = |name: &str| server.reply(&query(name, RecordType::A).to_vec().unwrap()).unwrap().metadata.response_code;
    assert_eq!(code(WEB), ResponseCode::NoError);
    assert_eq!(code("none.default.svc.cluster.local."), ResponseCode::ServFail);
    shared.set_loaded();
    assert_eq!(code("none.default.svc.cluster.local."), ResponseCode::NXDomain);
}

#[test]
fn the_hosts_resolver_file_names_the_upstream_servers() {
    let text = "# made by\nsearch a b\nnameserver 192.0.2.1\n nameserver   2001:db8::1 \nnameserver fe80::1%eth0\n\
                nameserver 10.96.0.10\nnameserver 192.0.2.1\noptions ndots:1\n";
    let upstreams = crate::upstreams_from(text, &[super::ip("10.96.0.10")]);
    let shown: Vec<_> = upstreams.iter().map(SocketAddr::to_string).collect();
    assert_eq!(shown, ["192.0.2.1:53", "[2001:db8::1]:53"]);
}

#[test]
fn nothing_to_serve_is_said_before_anything_starts() {
    let client = || Arc::new(Api::default()).client();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let fails = |config| Dns::new(client(), config).err().unwrap().to_string();
    assert!(fails(Config::default()).contains("cluster domain is empty"));
    let config = Config { cluster_domain: "cluster.local".to_owned(), ..Config::default() };
    assert!(fails(config).contains("no address"));
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = vec![taken.local_addr().unwrap()];
    let config = Config { cluster_domain: "cluster.local".to_owned(), listen, ..Config::default() };
    assert!(fails(config).contains("cannot serve DNS on 127.0.0.1"));
}
