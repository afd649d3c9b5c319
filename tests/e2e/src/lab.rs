//! A whole cluster of namespaces: the first node runs the control plane as well.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{
    etcd::{self, Etcd},
    node::Node,
    sh::{host, output, target},
    wires::{Families, Shape, Weather, Wires},
};

/// What is shown of a lab whose story failed.
const PICTURE: &[&[&str]] = &[
    &["get", "nodes", "-o", CONDITIONS],
    &["get", "pods", "--all-namespaces", "-o", "wide"],
    &["get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"],
];

/// Every condition of every node, a line each.
const CONDITIONS: &str = r#"jsonpath={range .items[*]}{.metadata.name}: {range .status.conditions[*]}{.type}={.status} ({.reason}) {end}{"\n"}{end}"#;

/// Lines shown of each.
const PICTURE_LINES: usize = 20;

/// What kind of lab to make.
pub struct Options {
    /// Short and unique on the machine: prefix of namespaces, cgroups, pinned maps.
    pub name: String,
    /// From 1.
    pub nodes: usize,
    /// How many of the nodes, from the first on, run the control plane; more than one share an etcd.
    pub servers: usize,
    /// How many of them have a member of an etcd beside it; without any the store is the server's own.
    pub etcd: usize,
    pub shape: Shape,
    pub weather: Weather,
    /// The `sluice` program.
    pub binary: PathBuf,
    /// More flags for the first node (`--etcd URL`).
    pub server_flags: Vec<String>,
    /// Ends the start between two of its steps.
    pub stop: Stop,
}

/// Set by whoever wants no lab any more.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { bail!("ended by a signal") } else { Ok(()) }
    }
}

impl Options {
    /// One node, the debug build.
    pub fn one(name: &str) -> Self {
        let binary = target().join("debug/sluice");
        Self {
            name: name.into(),
            nodes: 1,
            servers: 1,
            etcd: 0,
            shape: Shape::Shared,
            weather: Weather::default(),
            binary,
            server_flags: Vec::new(),
            stop: Stop::default(),
        }
    }
}

/// A running lab; everything of it is removed on drop.
pub struct Lab {
    // Dropped in this order: nodes first, then the network under them, then their files.
    nodes: Vec<Node>,
    etcd: Vec<Etcd>,
    servers: usize,
    wires: Wires,
    dir: TempDir,
}

impl Lab {
    /// Makes the network, starts the first node with the control plane, joins the others to it, and
    /// waits until every node is Ready.
    pub fn start(options: &Options) -> Result<Self> {
        Self::start_as("up", options, Families::V4)
    }

    /// As [`Lab::start`], with addresses of these families.
    pub fn start_with(options: &Options, families: Families) -> Result<Self> {
        Self::start_as("up", options, families)
    }

    /// As [`Lab::start`], but the first node runs the control plane alone: pods run on the others.
    pub fn start_apart(options: &Options) -> Result<Self> {
        Self::start_as("server", options, Families::V4)
    }

    fn start_as(first: &str, options: &Options, families: Families) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("{}-", options.name)).tempdir()?;
        let wires = Wires::make(&options.name, options.nodes, options.shape, families, options.weather)?;
        let nodes = (1..=options.nodes)
            .map(|number| {
                let addresses = Wires::addresses(number, options.shape, families);
                let name = format!("node{number}");
                Node::new(&options.name, &name, wires.of(number), addresses, dir.path(), &options.binary)
            })
            .collect();
        let mut lab = Self { nodes, etcd: Vec::new(), servers: options.servers, wires, dir };
        lab.start_etcd(options.etcd)?;
        let mut up = vec![first.to_owned()];
        up.extend(families.flags());
        up.extend(options.server_flags.iter().cloned());
        up.extend(lab.etcd_flags());
        for number in 0..options.nodes {
            options.stop.check()?;
            if number < options.servers {
                lab.share_keys(number)?;
                lab.nodes[number].start(&up)?;
            } else {
                let join = lab.join_arguments()?;
                lab.nodes[number].start(&join)?;
            }
        }
        options.stop.check()?;
        lab.kubectl("wait --for=condition=Ready node --all --timeout=90s")?;
        options.stop.check()?;
        Ok(lab)
    }

    /// A command where the nodes' wires meet: what a machine outside of the cluster sees.
    pub fn outside(&self, program: &std::path::Path) -> std::process::Command {
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.wires.middle())).arg(program);
        command
    }

    /// Starts members of an etcd on the first `members` nodes.
    pub fn start_etcd(&mut self, members: usize) -> Result<()> {
        if members > 0 {
            self.etcd = Etcd::members(&self.nodes[..members], self.dir.path())?;
        }
        self.etcd.iter_mut().zip(&self.nodes).try_for_each(|(member, node)| member.start(node))?;
        self.etcd.iter_mut().zip(&self.nodes).try_for_each(|(member, node)| member.ready(node))
    }

    /// The words that make a server use the lab's etcd.
    pub fn etcd_flags(&self) -> Vec<String> {
        etcd::flags(&self.etcd)
    }

    /// Gives a further server the first one's keys, as its first start asks for.
    fn share_keys(&self, number: usize) -> Result<()> {
        let (from, to) = (self.nodes[0].data_dir().join("pki"), self.nodes[number].data_dir().join("pki"));
        if number == 0 {
            return Ok(());
        }
        std::fs::create_dir_all(&to)?;
        for entry in std::fs::read_dir(&from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Member `number` of the etcd, from 1, and the node that it is on.
    pub fn etcd(&mut self, number: usize) -> (&mut Etcd, &Node) {
        (&mut self.etcd[number - 1], &self.nodes[number - 1])
    }

    /// Cuts the power of node `number`, from 1: everything on it ends at once, a member of the etcd too.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        ensure!(self.nodes[number - 1].runs(), "node{number} does not run");
        if let Some(member) = self.etcd.get_mut(number - 1).filter(|member| member.runs()) {
            member.kill()?;
        }
        self.nodes[number - 1].cut_power()
    }

    /// Cuts these nodes, from 1, off from all others; they go on to reach each other.
    pub fn partition(&mut self, numbers: &[usize]) -> Result<()> {
        self.wires.part(numbers)
    }

    /// Joins again what was cut off, and starts again what was killed: members of the etcd, then the rest, all at once.
    pub fn heal(&mut self) -> Result<()> {
        self.wires.unite()?;
        for (member, node) in self.etcd.iter_mut().zip(&self.nodes) {
            if !member.runs() {
                member.start(node)?;
            }
        }
        self.etcd.iter_mut().zip(&self.nodes).try_for_each(|(member, node)| member.ready(node))?;
        self.at_once(Node::restart)
    }

    /// Starts all nodes again that do not run, at once, as they were started before.
    pub fn restart(&mut self) -> Result<()> {
        self.at_once(Node::restart)
    }

    /// Joins all nodes that do not run, at once, as if they had never been there.
    pub fn join(&mut self) -> Result<()> {
        if self.nodes.iter().all(Node::runs) {
            return Ok(());
        }
        let join = self.join_arguments()?;
        self.at_once(|node| node.start(&join))
    }

    fn at_once(&mut self, start: impl Fn(&mut Node) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let dead = self.nodes.iter_mut().filter(|node| !node.runs());
            let started: Vec<_> = dead.map(|node| scope.spawn(|| start(node))).collect();
            started.into_iter().try_for_each(|started| started.join().unwrap_or_else(|_| bail!("a start panicked")))
        })
    }

    /// Where the files of its nodes are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The number of the node of this name, from 1.
    pub fn number(&self, name: &str) -> Result<usize> {
        let found = self.nodes.iter().position(|node| node.name == name);
        found.map(|index| index + 1).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("there is no {name}; there are {}", names.join(", "))
        })
    }

    /// Node `number`, from 1.
    pub fn node(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Runs kubectl as the administrator; arguments split at white space.
    pub fn kubectl(&self, arguments: &str) -> Result<String> {
        self.kubectl_words(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs kubectl as the administrator, with arguments that may hold spaces.
    pub fn kubectl_words(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.nodes[0].kubectl();
        command.args(arguments);
        output(&mut command).with_context(|| self.picture())
    }

    /// Runs kubectl on server `number`, from 1; arguments split at white space.
    pub fn kubectl_on(&self, number: usize, arguments: &str) -> Result<String> {
        let node = &self.nodes[number - 1];
        let mut command = node.kubectl();
        command.args(arguments.split_whitespace());
        output(&mut command).with_context(|| format!("log of {}:\n{}", node.name, node.log_tail()))
    }

    /// What a reader of a failed story wants to know: nodes' conditions, pods, the last events, the first node's log.
    fn picture(&self) -> String {
        PICTURE
            .iter()
            .map(|arguments| {
                let seen =
                    output(self.nodes[0].kubectl().args(*arguments)).unwrap_or_else(|error| format!("{error:#}"));
                let lines: Vec<&str> = seen.lines().collect();
                let tail = lines[lines.len().saturating_sub(PICTURE_LINES)..].join("\n");
                format!("kubectl {}:\n{tail}\n", arguments.join(" "))
            })
            .chain([format!("log of {}:\n{}", self.nodes[0].name, self.nodes[0].log_tail())])
            .collect()
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        self.kubectl(&format!("apply -f {}", file.display()))
    }

    /// Adds an image tar to every node.
    pub fn import(&self, tar: &std::path::Path) -> Result<()> {
        let tar = tar.to_string_lossy();
        for node in &self.nodes {
            output(&mut node.sluice(&["image", "import", &tar]))?;
        }
        Ok(())
    }

    /// Adds an image tar to node `number`, from 1.
    pub fn import_on(&self, number: usize, tar: &std::path::Path) -> Result<()> {
        output(&mut self.nodes[number - 1].sluice(&["image", "import", &tar.to_string_lossy()])).map(drop)
    }

    /// The words of `sluice node ...` that join a node to this lab.
    fn join_arguments(&self) -> Result<Vec<String>> {
        let servers: Vec<String> =
            self.nodes[..self.servers].iter().map(|node| format!("https://{}:6443", host(&node.address))).collect();
        let line = output(&mut self.nodes[0].sluice(&["token", "create", "--server", &servers.join(",")]))?;
        let words = line.split_whitespace().skip_while(|word| *word != "node");
        Ok(words.map(str::to_owned).collect())
    }
}
