//! A whole cluster of namespaces: the first node runs the control plane as well.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    node::Node,
    sh::{host, output, target},
    wires::{Families, Shape, Wires},
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
    pub shape: Shape,
    /// The `sluice` program.
    pub binary: PathBuf,
    /// More flags for the first node (`--etcd URL`).
    pub server_flags: Vec<String>,
}

impl Options {
    /// One node, the debug build.
    pub fn one(name: &str) -> Self {
        let binary = target().join("debug/sluice");
        Self { name: name.into(), nodes: 1, shape: Shape::Shared, binary, server_flags: Vec::new() }
    }
}

/// A running lab; everything of it is removed on drop.
pub struct Lab {
    // Dropped in this order: nodes first, then the network under them, then their files.
    nodes: Vec<Node>,
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
        let wires = Wires::make(&options.name, options.nodes, options.shape, families)?;
        let nodes = (1..=options.nodes)
            .map(|number| {
                let addresses = Wires::addresses(number, options.shape, families);
                let name = format!("node{number}");
                Node::new(&options.name, &name, wires.of(number), addresses, dir.path(), &options.binary)
            })
            .collect();
        let mut lab = Self { nodes, wires, dir };
        let mut up = vec![first.to_owned()];
        up.extend(families.flags());
        up.extend(options.server_flags.iter().cloned());
        lab.nodes[0].start(&up)?;
        for number in 1..options.nodes {
            let join = lab.join_arguments()?;
            lab.nodes[number].start(&join)?;
        }
        lab.kubectl("wait --for=condition=Ready node --all --timeout=90s")?;
        Ok(lab)
    }

    /// A command where the nodes' wires meet: what a machine outside of the cluster sees.
    pub fn outside(&self, program: &std::path::Path) -> std::process::Command {
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.wires.middle())).arg(program);
        command
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

    /// The words of `sluice node ...` that join a node to this lab.
    fn join_arguments(&self) -> Result<Vec<String>> {
        let line = output(&mut self.nodes[0].sluice(&["token", "create", "--server", &self.server()]))?;
        let words = line.split_whitespace().skip_while(|word| *word != "node");
        Ok(words.map(str::to_owned).collect())
    }

    fn server(&self) -> String {
        format!("https://{}:6443", host(&self.nodes[0].address))
    }
}
