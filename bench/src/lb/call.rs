//! A client in a pod: a process of its own, in the pod's network namespace and in the cgroup whose sockets are translated,
//! that calls services when it is told to and says what came of it. Its server is here, too.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::{
    libc,
    sched::{CloneFlags, setns},
    sys::socket::{setsockopt, sockopt::Linger},
};
use serde::{Deserialize, Serialize};

use crate::limits;

const QUESTION: usize = 16;
const ANSWER: usize = 64;
const BULK: usize = 128 * 1024;

/// How a client uses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Use {
    /// A connection per question, reset after the answer.
    Short,
    /// One connection for all questions.
    Kept,
    /// One connection that the server fills.
    Bulk,
}

/// What a client is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The first of `count` addresses, which take turns.
    pub(super) first: Ipv4Addr,
    pub(super) count: u32,
    pub(super) port: u16,
    pub(super) uses: Use,
    pub(super) time: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Questions answered, or bytes received.
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) seconds: f64,
    /// Microseconds from the question (`Kept`) or the connection's beginning (`Short`) to the answer's first byte.
    pub(super) first_byte: Vec<f64>,
}

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    netns: PathBuf,
    #[arg(long)]
    cgroup: Option<PathBuf>,
}

/// The client's process: a line of orders in, a line of outcome out, until its input ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(cgroup) = &options.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("enter {}", cgroup.display()))?;
    }
    enter(&options.netns)?;
    for line in io::stdin().lines() {
        let order: Order = serde_json::from_str(&line?).context("an order that cannot be read")?;
        println!("{}", serde_json::to_string(&call(&order))?);
    }
    Ok(())
}

/// Moves this thread into a network namespace.
pub(super) fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", netns.display()))
}

/// A running client.
pub(super) struct Client {
    child: Child,
    orders: ChildStdin,
    outcomes: BufReader<ChildStdout>,
}

impl Client {
    pub(super) fn start(netns: &Path, cgroup: Option<&Path>) -> Result<Client> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("call").arg("--netns").arg(netns);
        if let Some(cgroup) = cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a client")?;
        let orders = child.stdin.take().context("the client listens")?;
        let outcomes = BufReader::new(child.stdout.take().context("the client answers")?);
        Ok(Client { child, orders, outcomes })
    }

    pub(super) fn call(&mut self, order: &Order) -> Result<Outcome> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?).context("tell a client")?;
        let mut line = String::new();
        if self.outcomes.read_line(&mut line).context("hear from a client")? == 0 {
            bail!("a client ended early");
        }
        serde_json::from_str(&line).context("a client said something unexpected")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(order: &Order) -> Outcome {
    let begun = Instant::now();
    let end = begun + order.time;
    let mut outcome = Outcome::default();
    let mut kept = None;
    let mut turn = 0_u32;
    while Instant::now() < end && outcome.failed < limits::CALL_FAILURES {
        // Steps by a number without common factors: all targets get their turn, in no order that a cache would guess.
        let target = u32::from(order.first) + turn.wrapping_mul(2_654_435_761) % order.count.max(1);
        turn += 1;
        let target = SocketAddr::from((Ipv4Addr::from(target), order.port));
        if once(target, order.uses, &mut kept, end, &mut outcome).is_err() {
            outcome.failed += 1;
            kept = None;
        }
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}

fn once(
    target: SocketAddr,
    uses: Use,
    kept: &mut Option<TcpStream>,
    end: Instant,
    outcome: &mut Outcome,
) -> io::Result<()> {
    let begun = Instant::now();
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => connect(target)?,
    };
    let mut question = [0; QUESTION];
    question[0] = u8::from(uses == Use::Bulk);
    stream.write_all(&question)?;
    if uses == Use::Bulk {
        let mut buffer = vec![0; BULK];
        while Instant::now() < end {
            outcome.done += stream.read(&mut buffer)? as u64;
        }
        return reset(&stream);
    }
    let mut answer = [0; ANSWER];
    let first = stream.read(&mut answer)?;
    outcome.first_byte.push(begun.elapsed().as_secs_f64() * 1e6);
    stream.read_exact(&mut answer[first..])?;
    outcome.done += 1;
    if uses == Use::Short {
        return reset(&stream);
    }
    *kept = Some(stream);
    Ok(())
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, limits::REQUEST)?;
    stream.set_read_timeout(Some(limits::REQUEST))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Ends it with a reset when it is dropped: nothing waits for late segments afterwards.
fn reset(stream: &TcpStream) -> io::Result<()> {
    Ok(setsockopt(stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?)
}

/// Serves in a network namespace until the process ends.
pub(super) fn serve(netns: &Path, port: u16) -> Result<()> {
    let netns = netns.to_path_buf();
    let listen = move || -> Result<TcpListener> {
        enter(&netns)?;
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listen in the server's pod")
    };
    let listener = thread::spawn(listen).join().map_err(|_| anyhow::anyhow!("the server failed"))??;
    for _ in 0..limits::CALL_SERVERS {
        let listener = listener.try_clone()?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes ends its connection with an error.
                let _ = answer(stream);
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = [0; QUESTION];
    let bulk = vec![7; BULK];
    loop {
        stream.read_exact(&mut question)?;
        if question[0] == 0 {
            stream.write_all(&[7; ANSWER])?;
            continue;
        }
        loop {
            stream.write_all(&bulk)?;
        }
    }
}
