//! Several processes with the same work: one does it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluice_apiserver::context::UserInfo;
use sluice_scheduler::leader::{Election, lead};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::common::{Cluster, deployment, rolled_out};

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_another_takes_over() {
    let cluster = Arc::new(Cluster::start().await);
    let (told, mut leading) = mpsc::unbounded_channel();
    let candidate = |name: &'static str, duration: Duration| {
        let (stop, told) = (CancellationToken::new(), told.clone());
        let client = cluster.api.client(UserInfo::new("system:kube-scheduler", &["system:authenticated"]));
        let election = Election { duration, ..Election::new(name) };
        let (token, running) = (stop.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let work = |turn: CancellationToken| {
                told.send(name).unwrap();
                async move {
                    turn.cancelled().await;
                    Ok(())
                }
            };
            lead(client, "kube-scheduler", &election, running, work).await.unwrap();
        });
        (token, task)
    };
    let usual = Duration::from_millis(1500);
    let (first, ended) = candidate("first", usual);
    assert_eq!(leading.recv().await, Some("first"));
    // It waits far longer for one that dies than this test has patience: what it gets, it was given.
    let (second, died) = candidate("second", Duration::from_secs(600));
    let held = |name: &'static str| {
        let cluster = cluster.clone();
        async move {
            cluster
                .until("Lease", "kube-system", |all| all["kube-scheduler"]["spec"]["holderIdentity"] == json!(name))
                .await
        }
    };
    held("first").await;
    // It lets go of the lease as it is after renewals.
    cluster
        .until("Lease", "kube-system", |all| {
            let spec = &all["kube-scheduler"]["spec"];
            spec["renewTime"] != spec["acquireTime"]
        })
        .await;
    first.cancel();
    ended.await.unwrap();
    assert_eq!(leading.recv().await, Some("second"), "let go, taken at once");
    held("second").await;
    // One that dies lets go of nothing: its lease runs out.
    died.abort();
    let (_third, _task) = candidate("third", usual);
    assert_eq!(leading.recv().await, Some("third"));
    let leases = held("third").await;
    assert_eq!(leases["kube-scheduler"]["spec"]["leaseTransitions"], 2);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn elected_controllers_do_their_work() {
    let cluster =
        Cluster::with(|options| sluice_controllers::Options { election: Some(Election::new("a")), ..options }).await;
    let _node = cluster.node("a").await;
    cluster.namespace("n").await;
    cluster.create("Deployment", deployment("n", "web", 1)).await;
    cluster.until("Deployment", "n", |all| all.get("web").is_some_and(rolled_out)).await;
    let leases = cluster.until("Lease", "kube-system", |all| all.contains_key("kube-controller-manager")).await;
    assert_eq!(leases["kube-controller-manager"]["spec"]["holderIdentity"], "a");
}
