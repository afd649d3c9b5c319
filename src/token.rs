//! Bootstrap tokens: Secrets in `kube-system` that a new node proves itself with, once.

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use rand::Rng as _;
use sluice_apiserver::bootstrap::objects::NETWORK;

use crate::{
    client,
    config::{DEFAULT_POD_CIDR, DEFAULT_SERVICE_CIDR, Options},
};

const KIND: &str = "bootstrap.kubernetes.io/token";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a token and print the command that joins a node with it
    Create(Create),
    /// List the tokens
    List(Options),
    /// Delete a token by its id (the part before the dot)
    Delete {
        /// The part of the token before the dot
        id: String,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Args)]
pub(crate) struct Create {
    /// How long the token may be used, in hours
    #[arg(long, default_value_t = 24)]
    hours: u32,
    /// The control plane's URL as the node will reach it, or that of each of its servers [repeatable] [default: this
    /// machine's]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    server: Vec<String>,
    /// Print the command that joins a node, or the lines of its settings file, for `sluice-node.service`
    #[arg(long, value_enum, default_value_t = Output::Command)]
    output: Output,
    #[command(flatten)]
    options: Options,
}

/// See [`Create::output`].
#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Command,
    Config,
}

pub(crate) async fn run(command: Command) -> Result<()> {
    match command {
        Command::Create(create) => self::create(create).await,
        Command::List(options) => list(options).await,
        Command::Delete { id, options } => {
            let name = format!("bootstrap-token-{id}");
            secrets(options).await?.delete(&name, &DeleteParams::default()).await.context("cannot delete the token")?;
            println!("token {id} deleted");
            Ok(())
        }
    }
}

async fn create(create: Create) -> Result<()> {
    let config = create.options.clone().resolve()?;
    let (id, secret) = (random(6), random(16));
    let expires = Timestamp::now() + std::time::Duration::from_secs(u64::from(create.hours) * 3600);
    let data = [
        ("token-id", id.clone()),
        ("token-secret", secret.clone()),
        ("expiration", expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ("usage-bootstrap-authentication", "true".into()),
        ("usage-bootstrap-signing", "true".into()),
        ("auth-extra-groups", "system:bootstrappers:sluice:node".into()),
    ];
    let token = Secret {
        metadata: ObjectMeta {
            name: Some(format!("bootstrap-token-{id}")),
            namespace: Some("kube-system".into()),
            ..ObjectMeta::default()
        },
        type_: Some(KIND.into()),
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    };
    secrets(create.options).await?.create(&PostParams::default(), &token).await.context("cannot store the token")?;
    let hash = ca_hash(&config.admin_kubeconfig())?;
    let servers = match create.server.is_empty() {
        true => vec![crate::control_plane::join_url(&config)],
        false => create.server,
    };
    let token = format!("{id}.{secret}");
    let ranges = ranges(&client::from_file(&config.admin_kubeconfig()).await?).await?;
    match create.output {
        Output::Command => {
            let servers: String = servers.iter().map(|server| format!(" --server {server}")).collect();
            let ranges: String = ranges.iter().map(|(_, flag, range)| format!(" {flag} {range}")).collect();
            println!("sluice node{servers} --token {token} --ca-hash {hash}{ranges}");
        }
        Output::Config => {
            println!("server: [{}]\ntoken: {token}\ncaHash: {hash}", servers.join(", "));
            for (name, _, range) in ranges {
                println!("{name}: {range}");
            }
        }
    }
    // Apart from what is to be copied.
    eprintln!("The token may be used until {}.", expires.strftime("%Y-%m-%d %H:%M UTC"));
    Ok(())
}

/// Setting, flag and value for a node of a cluster whose ranges are not the default ones.
async fn ranges(client: &kube::Client) -> Result<Vec<(&'static str, &'static str, String)>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let network = maps.get_opt(NETWORK).await.context("cannot read the cluster's ranges")?;
    let mut data = network.and_then(|map| map.data).unwrap_or_default();
    let flags = [("podCidr", "--pod-cidr", DEFAULT_POD_CIDR), ("serviceCidr", "--service-cidr", DEFAULT_SERVICE_CIDR)];
    let told = flags.into_iter().filter_map(|(name, flag, default)| {
        let range = data.remove(name).filter(|range| *range != default)?;
        Some((name, flag, range))
    });
    Ok(told.collect())
}

async fn list(options: Options) -> Result<()> {
    let tokens = secrets(options).await?.list(&ListParams::default().fields(&format!("type={KIND}"))).await?;
    println!("{:<10}{:<24}", "ID", "EXPIRES");
    for token in tokens {
        let data = token.data.unwrap_or_default();
        let text = |key: &str| data.get(key).map(|v| String::from_utf8_lossy(&v.0).into_owned()).unwrap_or_default();
        println!("{:<10}{:<24}", text("token-id"), text("expiration"));
    }
    Ok(())
}

async fn secrets(options: Options) -> Result<Api<Secret>> {
    let config = options.resolve()?;
    Ok(Api::namespaced(client::from_file(&config.admin_kubeconfig()).await?, "kube-system"))
}

/// The hash of the cluster's CA that a joining node pins, from the administrator's kubeconfig.
fn ca_hash(kubeconfig: &std::path::Path) -> Result<String> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let cluster = file.clusters.first().and_then(|named| named.cluster.as_ref());
    let data = cluster.and_then(|c| c.certificate_authority_data.as_ref()).context("the kubeconfig names no CA")?;
    sluice_agent::bootstrap::ca_hash(data)
}

fn random(length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}
