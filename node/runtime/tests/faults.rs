//! kill -9 of everything beneath a container, one after the other.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::Duration;

use common::{World, eventually, log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_runtime::daemon::Containerd;
use sluice_runtime::{Event, Status};

fn parent(pid: u32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn containers_outlive_containerd() {
    let mut world = World::start("daemon").await;
    world.import().await;
    let spec = world.run("echo up; while :; do sleep 0.1; done").await;
    let mut events = world.runtime.events();
    kill(Pid::from_raw(world.daemon.pid().cast_signed()), Signal::SIGKILL).unwrap();
    world.daemon.exited().await.unwrap();
    assert!(world.runtime.version().await.is_err());
    world.daemon = Containerd::spawn(&world.dir.path().join("containerd"), &world.socket).await.unwrap();
    let resync = async { while events.next().await != Event::Resync {} };
    tokio::time::timeout(Duration::from_secs(20), resync).await.unwrap();
    let state = world.runtime.container(&spec.id).await.unwrap().unwrap();
    assert!(matches!(state.status, Status::Running { .. }), "{:?}", state.status);
    let done = world.runtime.exec_sync(&spec.id, vec!["echo".into(), "still".into()], None).await.unwrap();
    assert_eq!(done.stdout, b"still\n");
    let exit = world.runtime.stop(&spec.id, None, Duration::ZERO).await.unwrap();
    assert_eq!(exit.code, 137);
    // The same daemon is adopted, not started twice.
    let again = Containerd::spawn(&world.dir.path().join("containerd"), &world.socket).await.unwrap();
    assert_eq!(again.pid(), world.daemon.pid());
    world.end().await;
}

#[tokio::test]
async fn a_container_whose_shim_is_killed_has_ended() {
    let mut world = World::start("shim").await;
    world.import().await;
    let spec = world.run("echo up; sleep 1000").await;
    eventually("it is up", || log(&spec).contains("up")).await;
    let mut events = world.runtime.events();
    let Status::Running { pid, .. } = world.runtime.container(&spec.id).await.unwrap().unwrap().status else {
        panic!()
    };
    kill(Pid::from_raw(parent(pid)), Signal::SIGKILL).unwrap();
    let ended = async {
        loop {
            if let Event::Exited { id, exit } = events.next().await {
                return (id, exit);
            }
        }
    };
    let (id, exit) = tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    assert_eq!((id, exit.code), (spec.id.clone(), 137));
    world.runtime.remove(&spec.id).await.unwrap();
    assert!(world.runtime.containers().await.unwrap().is_empty());
    world.end().await;
}
