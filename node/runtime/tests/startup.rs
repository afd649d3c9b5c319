//! How long a small container takes to start, beside `ctr run` of the same container in the same run.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::World;

const ROUNDS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_takes_no_longer_than_ctr_run() {
    let mut world = World::start("startup").await;
    world.import().await;
    let (mut ours, mut created, mut ctr, mut exec) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let spec = world.spec("sleep 1000");
        let began = Instant::now();
        world.runtime.create(&spec).await.unwrap();
        created.push(began.elapsed());
        world.runtime.start(&spec.id).await.unwrap();
        ours.push(began.elapsed());
        let began = Instant::now();
        world.runtime.exec_sync(&spec.id, vec!["true".into()], None).await.unwrap();
        exec.push(began.elapsed());
        world.runtime.remove(&spec.id).await.unwrap();

        let name = format!("ctr{round}");
        let run = |arguments: &[&str]| {
            let output = Command::new("ctr")
                .args(["--address", world.socket.to_str().unwrap(), "--namespace", "k8s.io"])
                .args(arguments)
                .output()
                .unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let began = Instant::now();
        let image = "docker.io/library/busybox:test";
        run(&["run", "--detach", "--null-io", image, &name, "/bin/sleep", "1000"]);
        ctr.push(began.elapsed());
        run(&["task", "delete", "--force", &name]);
        run(&["container", "delete", &name]);
    }
    for (what, times) in [("create", &created), ("create and start", &ours), ("ctr run", &ctr), ("exec true", &exec)] {
        println!("{what:<18} p50 {:>6.1?} min {:>6.1?}", median(times), times.iter().min().unwrap());
    }
    // The best of each: the rest is the machine's other work.
    let (best, reference) = (ours.iter().min().unwrap(), ctr.iter().min().unwrap());
    assert!(*best < reference.mul_f64(1.3), "{best:?} is more than 1.3 times ctr's {reference:?}");
    world.end().await;
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}
