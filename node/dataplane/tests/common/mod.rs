//! A test in a process of its own: its own network namespace, its own cgroup, its own pins; nothing is left behind.
#![allow(unsafe_code, dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod pods;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sluice_dataplane::model::{Endpoint, Forwarding, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot};
use sluice_dataplane::{Config, Dataplane, NodePortAddresses, Redirect, Uplinks, Xdp};

const INNER: &str = "SLUICE_TEST_INNER";
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Every test here creates namespaces, attaches programs: one at a time per test process is enough for two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// The places that belong to one test.
pub struct Place {
    pub name: String,
    pub pins: PathBuf,
    /// The cgroup that the test's own sockets are in.
    pub cgroup: PathBuf,
    /// A cgroup that nobody is in.
    pub elsewhere: PathBuf,
}

/// Runs `story` in a process with fresh namespaces; `name` is the test function's name.
pub fn isolated(name: &str, story: fn(&Place)) {
    if std::env::var(INNER).as_deref() == Ok(name) {
        detect_no_duplicates();
        run("ip", &["link", "set", "lo", "up"]);
        return story(&place(name, std::os::unix::process::parent_id()));
    }
    assert!(nix::unistd::geteuid().is_root(), "{name} loads eBPF programs: run the tests as root");
    let _guard = ONE_AT_A_TIME.lock();
    let place = place(name, std::process::id());
    for cgroup in [&place.cgroup, &place.elsewhere] {
        std::fs::create_dir_all(cgroup).unwrap();
    }
    let procs = std::ffi::CString::new(place.cgroup.join("cgroup.procs").to_str().unwrap()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads", "1"]).env(INNER, name);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let file = libc::open(procs.as_ptr(), libc::O_WRONLY);
            if file < 0 || libc::write(file, c"0".as_ptr().cast(), 1) != 1 || libc::unshare(libc::CLONE_NEWNET) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            libc::close(file);
            Ok(())
        });
    }
    let status = command.status().unwrap();
    // Filters of kernels without TCX go with the namespace that the process took along.
    for pins in pins(&place.name) {
        Dataplane::remove_all(&pins).unwrap();
    }
    for cgroup in [&place.cgroup, &place.elsewhere] {
        std::fs::remove_dir(cgroup).unwrap();
    }
    for namespace in namespaces(&place.name) {
        run("ip", &["netns", "delete", &namespace]);
    }
    assert!(status.success(), "{name} failed");
}

fn place(name: &str, owner: u32) -> Place {
    let name = format!("sluice-test-{owner}-{name}");
    let root = cgroup_root();
    Place {
        pins: Path::new("/sys/fs/bpf").join(&name),
        cgroup: root.join(&name),
        elsewhere: root.join(format!("{name}-elsewhere")),
        name,
    }
}

fn cgroup_root() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    line.split(' ').nth(1).unwrap().into()
}

/// Where the nodes of a test pin: the test's own one, and others whose names begin alike.
fn pins(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten();
    let paths =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path());
    paths.chain([Path::new("/sys/fs/bpf").join(prefix)]).collect()
}

fn namespaces(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(prefix)).collect()
}

pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Place {
    /// The configuration of a node in this place whose sockets are those of the test.
    pub fn config(&self) -> Config {
        Config {
            node: "here".into(),
            cgroup: Some(self.cgroup.clone()),
            pin_dir: self.pins.clone(),
            node_addresses: vec![Ipv4Addr::new(10, 1, 0, 1).into()],
            node_ports: 30000..=32767,
            node_port_addresses: NodePortAddresses::All,
            pod_range: None,
            cluster_range: None,
            uplinks: Uplinks::Named(vec![]),
            xdp: Xdp::Auto,
            forwarding: Forwarding::Snat,
            redirect: Redirect::On,
        }
    }

    /// Another network namespace, linked to this one by a veth pair whose other end is `eth0` there. Both ends have an
    /// address when given as `10.1.0.1/24`.
    pub fn neighbour(&self, name: &str, link: &str, here: Option<&str>, there: &str, via: Option<&str>) -> Namespace {
        let namespace = format!("{}-{name}", self.name);
        run("ip", &["netns", "add", &namespace]);
        let place = Namespace { path: Path::new("/run/netns").join(&namespace) };
        place.within(detect_no_duplicates);
        run("ip", &["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        if let Some(here) = here {
            run("ip", &["address", "add", here, "dev", link]);
        }
        run("ip", &["link", "set", link, "up"]);
        for arguments in [
            vec!["address", "add", there, "dev", "eth0"],
            vec!["link", "set", "eth0", "up"],
            vec!["link", "set", "lo", "up"],
        ] {
            run("ip", &[vec!["-n", &namespace], arguments].concat());
        }
        if let Some(via) = via {
            run("ip", &["-n", &namespace, "route", "add", via, "dev", "eth0", "scope", "link"]);
            run("ip", &["-n", &namespace, "route", "add", "default", "via", via, "dev", "eth0"]);
        }
        place
    }
}

/// Links that come have an address of their own at once: without one the kernel does not ask for its neighbours, and on a busy
/// machine it takes seconds to find out that nobody else has it.
fn detect_no_duplicates() {
    for which in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/accept_dad"), "0").unwrap();
    }
}

/// A network namespace.
pub struct Namespace {
    pub path: PathBuf,
}

impl Namespace {
    /// Runs something on a thread inside.
    pub fn within<R: Send>(&self, story: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = std::fs::File::open(&self.path).unwrap();
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                story()
            });
            inside.join().unwrap()
        })
    }
}

/// Makes a veth link's end like a real card for XDP at the other end: checksums are finished before they are sent, and
/// what the other end's program sends is taken in (GRO has a receive queue of its own).
pub fn act_as_card(link: &str) {
    const SET_TX_CHECKSUMS: u32 = 0x17;
    const SET_GRO: u32 = 0x2c;
    set_features(link, &[[SET_TX_CHECKSUMS, 0], [SET_GRO, 1]]);
}

/// Gives a veth link's end a program that lets everything in: only then the other end wakes it up for frames that its own
/// program sends back.
pub fn wake_for_frames(link: &str) {
    const PROGRAM_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;
    const PROGRAM_XDP: u64 = 6;
    const ATTACH_XDP: u64 = 37;
    // r0 = XDP_PASS; exit
    let instructions = [0x2_0000_00b7_u64, 0x95];
    let load = [PROGRAM_XDP | (instructions.len() as u64) << 32, instructions.as_ptr() as u64, c"GPL".as_ptr() as u64];
    let call = |command: libc::c_long, attributes: &[u64]| {
        // SAFETY: the attributes' pointers are to live locals.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
        assert!(fd >= 0, "{link}: {}", std::io::Error::last_os_error());
        fd as u64
    };
    let program = call(PROGRAM_LOAD, &load);
    let index = u64::from(nix::net::if_::if_nametoindex(link).unwrap());
    // It ends with this process.
    call(LINK_CREATE, &[program | index << 32, ATTACH_XDP]);
}

/// Makes a link's VLAN tags stand in the frames, as on a wire.
pub fn tag_in_frames(link: &str) {
    const SET_FLAGS: u32 = 0x26;
    set_features(link, &[[SET_FLAGS, 0]]);
}

fn set_features(link: &str, values: &[[u32; 2]]) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    for value in values {
        let mut value = *value;
        // SAFETY: all zeroes is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(link.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the request names a value of the size that these commands read.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        assert_eq!(result, 0, "{link}: {}", std::io::Error::last_os_error());
    }
}

/// Answers every TCP connection with its own address and the peer's, as `own peer`, then echoes lines until the end.
pub fn tcp_server(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let own = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    own
}

fn answer(mut stream: TcpStream) {
    let text = format!("{} {}\n", stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let _ = stream.write_all(text.as_bytes());
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Answers every datagram with `own peer`.
pub fn udp_server(address: &str) -> SocketAddr {
    let socket = UdpSocket::bind(address).unwrap();
    let own = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{own} {peer}").as_bytes(), peer);
        }
    });
    own
}

/// A TCP connection and what the server said: `(server's own address, client's address as the server sees it)`.
pub struct Client {
    pub stream: TcpStream,
    pub server: SocketAddr,
    pub seen_as: SocketAddr,
}

pub fn connect(address: &str) -> std::io::Result<Client> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    let (server, seen_as) = words(&text);
    Ok(Client { stream, server, seen_as })
}

impl Client {
    /// Does the connection still carry data both ways?
    pub fn alive(&mut self) -> bool {
        let mut buffer = [0; 4];
        self.stream.write_all(b"ping").is_ok() && self.stream.read_exact(&mut buffer).is_ok() && &buffer == b"ping"
    }
}

/// Splits `server client` as the servers send it.
pub fn words(text: &[u8]) -> (SocketAddr, SocketAddr) {
    let text = std::str::from_utf8(text).unwrap();
    let (server, client) = text.split_once(' ').unwrap();
    (server.parse().unwrap(), client.parse().unwrap())
}

/// A Service `shop/web` of one port, with endpoints at these addresses (`!` before one: not ready).
pub fn service(protocol: Protocol, cluster: &str, node_port: u16, endpoints: &[&str]) -> Snapshot {
    let cluster: SocketAddr = cluster.parse().unwrap();
    let port = ServicePort { name: "main".into(), protocol, port: cluster.port(), node_port };
    let mut slices = std::collections::BTreeMap::new();
    for (index, text) in endpoints.iter().enumerate() {
        let address: SocketAddr = text.trim_start_matches('!').trim_start_matches('~').parse().unwrap();
        let ready = !text.starts_with('!');
        let node = if text.contains('~') { "there" } else { "here" };
        let endpoint = Endpoint {
            address: Some(address.ip()),
            ready,
            serving: ready,
            node: Some(node.into()),
            ..Endpoint::default()
        };
        let slice = Slice {
            service: "web".into(),
            ports: vec![SlicePort { name: "main".into(), protocol, port: address.port() }],
            endpoints: vec![endpoint],
        };
        slices.insert(("shop".into(), format!("web-{index}").into()), slice);
    }
    let service = Service { cluster: vec![cluster.ip()], ports: vec![port], ..Service::default() };
    let services = [(("shop".into(), "web".into()), service)].into();
    Snapshot { services, slices, node: "here".into(), ..Snapshot::default() }
}

/// A TCP packet that opens a connection. Checksums are changed by what changes, so they need not be right.
pub fn opening(client: SocketAddrV4, service: SocketAddrV4) -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[12..16].copy_from_slice(&[0x08, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&40_u16.to_be_bytes());
    (frame[22], frame[23]) = (64, 6);
    frame[26..30].copy_from_slice(&client.ip().octets());
    frame[30..34].copy_from_slice(&service.ip().octets());
    frame[34..36].copy_from_slice(&client.port().to_be_bytes());
    frame[36..38].copy_from_slice(&service.port().to_be_bytes());
    (frame[46], frame[47]) = (0x50, 2);
    frame
}

/// Where an IPv4 packet goes.
pub fn destination(frame: &[u8]) -> SocketAddrV4 {
    let octets: [u8; 4] = frame[30..34].try_into().unwrap();
    SocketAddrV4::new(octets.into(), u16::from_be_bytes([frame[36], frame[37]]))
}

/// Packets that the kernel's stack forwarded.
pub fn forwarded() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:")).map(|line| line.split(' '));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names.zip(values).find(|(name, _)| *name == "ForwDatagrams").unwrap().1.parse().unwrap()
}
