//! The driver: links, sockets, wishes and messages in, frames out. What to do is decided by [`crate::plan`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::frame;
use crate::limits;
use crate::links::{self, Links};
use crate::plan::{Action, Candidate, Candidates, Plan};
use crate::socket::{Heard, Sockets};
use crate::{Announcement, Config};

/// Announces what is wanted until the shutdown; says by their names which announcements this node holds.
///
/// # Errors
/// When the kernel does not tell of its links.
pub async fn run(
    config: Config,
    mut wanted: watch::Receiver<Vec<Announcement>>,
    holds: watch::Sender<BTreeSet<String>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _handle, mut changes) = rtnetlink::new_multicast_connection(&groups)?;
    let listener = tokio::spawn(connection);
    let (sender, mut heard) = mpsc::channel(limits::FRAMES);
    let mut announcer = Announcer::new(config, sender, holds);
    announcer.want(wanted.borrow_and_update().clone())?;
    loop {
        let deadline = announcer.plan.deadline();
        tokio::select! {
            // What was heard before a deadline counts before it.
            biased;
            () = shutdown.cancelled() => break,
            Some(message) = heard.recv() => announcer.hear(&message),
            changed = wanted.changed() => {
                if changed.is_err() {
                    break;
                }
                let all = wanted.borrow_and_update().clone();
                announcer.want(all)?;
            }
            Some(_) = changes.next() => {
                while changes.try_recv().is_ok() {}
                announcer.relink()?;
            }
            () = until(deadline) => announcer.tick(),
        }
    }
    listener.abort();
    Ok(())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

struct Announcer {
    config: Config,
    plan: Plan,
    wanted: BTreeMap<IpAddr, Announcement>,
    links: Links,
    /// By the links' indexes.
    sockets: HashMap<u32, Sockets>,
    /// Which links each address is announced on.
    places: BTreeMap<IpAddr, BTreeSet<u32>>,
    heard: mpsc::Sender<Heard>,
    holds: watch::Sender<BTreeSet<String>>,
}

impl Announcer {
    fn new(config: Config, heard: mpsc::Sender<Heard>, holds: watch::Sender<BTreeSet<String>>) -> Self {
        Self {
            plan: Plan::new(config.node.clone()),
            config,
            wanted: BTreeMap::new(),
            links: Links::new(),
            sockets: HashMap::new(),
            places: BTreeMap::new(),
            heard,
            holds,
        }
    }

    /// Takes in what the API wants: of that, what this node is a candidate for.
    fn want(&mut self, all: Vec<Announcement>) -> io::Result<()> {
        let mine = |a: &Announcement| a.nodes.iter().any(|node| node.name == self.config.node);
        self.wanted = all.into_iter().filter(mine).map(|a| (a.address, a)).collect();
        self.links = if self.wanted.is_empty() { Links::new() } else { links::scan()? };
        self.arrange();
        Ok(())
    }

    /// The kernel's links or their addresses changed.
    fn relink(&mut self) -> io::Result<()> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let links = links::scan()?;
        if links != self.links {
            self.links = links;
            self.arrange();
        }
        Ok(())
    }

    fn arrange(&mut self) {
        let place = |announcement: &Announcement| -> BTreeSet<u32> {
            let Announcement { address, interfaces, .. } = announcement;
            let chosen = links::chosen(&self.links, *address, interfaces, &self.config.addresses);
            chosen.into_iter().map(|link| link.index).collect()
        };
        self.places = self.wanted.values().map(|announcement| (announcement.address, place(announcement))).collect();
        // By an address of the family of what it announces, so that it can be asked for that as well.
        let candidate = |about: &IpAddr, node: &crate::Node| {
            let near = node.addresses.iter().copied().filter(|address| links::toward(&self.links, *address).is_some());
            let watched = near.clone().find(|address| address.is_ipv4() == about.is_ipv4()).or(near.clone().next());
            Candidate { name: node.name.clone(), watched }
        };
        let wanted: BTreeMap<IpAddr, Candidates> = self
            .wanted
            .values()
            .map(|a| {
                (a.address, Candidates { nodes: a.nodes.iter().map(|node| candidate(&a.address, node)).collect() })
            })
            .collect();
        let watched = wanted.values().flat_map(|candidates| &candidates.nodes).filter_map(|node| node.watched);
        let watched: BTreeSet<u32> =
            watched.filter_map(|address| Some(links::toward(&self.links, address)?.0.index)).collect();
        self.open(&watched);
        let actions = self.plan.want(wanted, Instant::now());
        self.carry_out(actions);
    }

    /// Has sockets on the links that addresses are announced on or other nodes are watched by, and on no others.
    fn open(&mut self, watched: &BTreeSet<u32>) {
        let needed: BTreeSet<u32> = self.places.values().flatten().chain(watched).copied().collect();
        let known: HashMap<u32, &links::Link> = self.links.values().map(|link| (link.index, link)).collect();
        self.sockets.retain(|index, sockets| {
            needed.contains(index) && known.get(index).is_some_and(|link| link.mac == sockets.mac())
        });
        for link in needed.iter().filter_map(|index| known.get(index)) {
            if !self.sockets.contains_key(&link.index) {
                match Sockets::open(link, &self.heard) {
                    Ok(sockets) => drop(self.sockets.insert(link.index, sockets)),
                    Err(error) => tracing::warn!(link = link.index, %error, "no address is announced on this link"),
                }
            }
        }
        for (index, sockets) in &mut self.sockets {
            let here = self.places.iter().filter(|(_, links)| links.contains(index)).map(|(address, _)| *address);
            if let Err(error) = sockets.listen_for(here) {
                tracing::warn!(link = index, %error, "questions for IPv6 addresses are not heard on this link");
            }
        }
    }

    fn hear(&mut self, Heard { link, message }: &Heard) {
        if let Some(question) = message.asks
            && self.plan.holds(&question.target)
            && self.places.get(&question.target).is_some_and(|links| links.contains(link))
            && let Some(sockets) = self.sockets.get(link)
            && let Some(answer) = frame::answer(sockets.mac(), &question)
        {
            send(sockets, *link, question.target, &answer);
        }
        if let Some((address, mac)) = message.tells {
            let actions = self.plan.hear(address, mac, Instant::now());
            self.carry_out(actions);
        }
    }

    fn tick(&mut self) {
        let actions = self.plan.tick(Instant::now());
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Probe(node) => self.ask(node, node, None),
                Action::Ask(node, place, address) => self.ask(node, address, Some(place)),
                Action::Claim(address) => self.claim(address),
                Action::Hold(address) => {
                    tracing::info!(%address, "announces the address from now on");
                    self.tell();
                }
                Action::Yield(address) => {
                    tracing::info!(%address, "announces the address no more");
                    self.tell();
                }
                Action::Conflict(address, [a, b, c, d, e, f]) => {
                    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
                    tracing::warn!(%address, mac, "another host uses the address of a load balancer");
                }
            }
        }
    }

    fn tell(&self) {
        let held = self.wanted.values().filter(|announcement| self.plan.holds(&announcement.address));
        self.holds.send_replace(held.map(|announcement| announcement.name.clone()).collect());
    }

    /// Asks for an address on the link that leads to a node.
    fn ask(&self, node: IpAddr, about: IpAddr, place: Option<frame::Mac>) {
        if let Some((link, own)) = links::toward(&self.links, node)
            && let Some(sockets) = self.sockets.get(&link.index)
            && let Some(question) = frame::question(link.mac, own, about, place)
        {
            send(sockets, link.index, about, &question);
        }
    }

    fn claim(&self, address: IpAddr) {
        for index in self.places.get(&address).into_iter().flatten() {
            if let Some(sockets) = self.sockets.get(index) {
                send(sockets, *index, address, &frame::claim(sockets.mac(), address));
            }
        }
    }
}

fn send(sockets: &Sockets, link: u32, about: IpAddr, frame: &[u8]) {
    // A link that is down carries nothing; everything that matters is said again.
    if let Err(error) = sockets.send(about, frame) {
        tracing::debug!(link, %about, %error, "a frame could not be sent");
    }
}
