//! `sluice explain`: what becomes of a packet on this node, decision by decision. The API is asked for names only; what is said
//! about the packet comes from the kernel's programs and maps.

mod objects;
mod parties;
mod print;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use sluice_dataplane::End;
use sluice_dataplane::explain::{Explainer, Explanation, Question, Sender};
use sluice_dataplane::model::Protocol;

use crate::config::{Config, Options};
use crate::{client, node};
use objects::Objects;
use parties::{Family, Wanted};

/// How long the API may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Arguments {
    /// Who sends: a pod (`namespace/name`, or `name`), `node` (or `host`) for this node itself, or an address: a pod's, or that
    /// of somebody outside
    source: String,
    /// To whom: `svc/name`, a Service's DNS name, a pod (`namespace/name`, or `name`), or an address; each with `:port`, which
    /// may be left out where there is one only
    destination: String,
    /// Namespace of names without one
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Protocol [default: tcp, or what the Service's only port has]
    #[arg(long, value_enum, value_name = "NAME", ignore_case = true)]
    protocol: Option<Transport>,
    /// Port that the packet comes from; that of an open connection shows what is remembered of it
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
    /// Address family, where both ends have both [default: the Service's or pod's first one]
    #[arg(long, value_enum, value_name = "NAME", ignore_case = true)]
    family: Option<Family>,
    /// One line for each decision, or one JSON document
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// As --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// See [`Arguments::output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Who sends, as it was understood.
    source: String,
    /// To whom.
    destination: String,
    #[serde(flatten)]
    explanation: Explanation,
    /// What else to know, and what to run elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { source, destination, namespace, protocol, source_port, family, output, json, options } = arguments;
    let config = options.resolve()?;
    let pins = config.pin_dir();
    let mut explainer = Explainer::open(&pins).with_context(|| {
        format!("cannot read the maps pinned under {}; is the node running, and are you root?", pins.display())
    })?;
    let mut notes = Vec::new();
    let objects = match objects(&config).await {
        Ok(objects) => Some(objects),
        Err(error) if parties::need_names(&source, &destination) => {
            return Err(error.context("names are looked up in the API, which cannot be asked; addresses need none"));
        }
        Err(error) => {
            notes.push(format!("the API cannot be asked for names ({error:#}): policies and pods are said by numbers"));
            None
        }
    };
    let is_here = |address| explainer.is_here(address).unwrap_or(false);
    let wanted = Wanted {
        namespace: &namespace,
        is_here: &is_here,
        domain: &config.cluster_domain,
        protocol: protocol.map(Protocol::from),
    };
    let known = objects.as_ref();
    let from = parties::source(&source, &wanted, known)?;
    let to = parties::destination(&destination, &wanted, known)?;
    let protocol = to.protocol;
    let (sender, address) = parties::choose(&from, &to.party, family)?;
    notes.extend(parties::notes(&from, &to, &wanted)?);
    let question = Question {
        sender: sender.map_or(Sender::Node, Sender::At),
        destination: End { address, port: to.port },
        protocol,
        source_port,
        cluster: known.map(Objects::snapshot).transpose()?,
    };
    let explanation = explainer.explain(&question)?;
    let report = Report { source: from.to_string(), destination: to.to_string(), explanation, notes };
    if json || output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", print::text(&report));
    }
    Ok(())
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Protocol {
        match transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Sctp => Protocol::Sctp,
        }
    }
}

/// What the API has, as the administrator or as this node may see it.
async fn objects(config: &Config) -> Result<Objects> {
    let files = [config.admin_kubeconfig(), node::keys(config).join("kubeconfig")];
    let Some(file) = files.iter().find(|file| file.exists()) else {
        bail!("neither {} nor {} is there", files[0].display(), files[1].display());
    };
    let client = client::from_file(file).await?;
    tokio::time::timeout(PATIENCE, Objects::list(&client)).await.context("the API server does not answer in time")?
}
