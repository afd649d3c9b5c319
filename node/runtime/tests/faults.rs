//! kill -9 of everything beneath a container, one after the other.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::{World, eventually, log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_runtime::daemon::Containerd;
use sluice_runtime::{ContainerSpec, Event, Events, Exit, Status};
use tokio_util::sync::CancellationToken;

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
async fn a_supervised_containerd_comes_back_each_time() {
    let mut world = World::start("supervised").await;
    world.import().await;
    let spec = world.run("echo up; while :; do sleep 0.1; done").await;
    let dir = world.dir.path().join("containerd");
    let shutdown = CancellationToken::new();
    // The same process, adopted.
    let supervised = Containerd::spawn(&dir, &world.socket).await.unwrap();
    let supervision = tokio::spawn(supervised.supervise(shutdown.clone()));
    let mut events = world.runtime.events();
    for _ in 0..2 {
        kill(Pid::from_raw(world.daemon.pid().cast_signed()), Signal::SIGKILL).unwrap();
        world.daemon.exited().await.unwrap();
        let resync = async { while events.next().await != Event::Resync {} };
        tokio::time::timeout(Duration::from_secs(20), resync).await.unwrap();
        world.daemon = Containerd::spawn(&dir, &world.socket).await.unwrap();
        let state = world.runtime.container(&spec.id).await.unwrap().unwrap();
        assert!(matches!(state.status, Status::Running { .. }), "{:?}", state.status);
    }
    shutdown.cancel();
    supervision.await.unwrap();
    // What is left running is not started again.
    assert!(world.runtime.version().await.is_ok());
    world.end().await;
}

/// What stands for a shim here has but the command line of one, of no container's, and waits.
fn lost_shim(world: &World) -> std::process::Child {
    let script = "exec -a containerd-shim-runc-v2 sh -c 'kill -STOP $$' -namespace \"$2\" -id lost -address \"$1\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).arg(&world.socket).arg(&world.runtime.config().namespace);
    let shim = command.spawn().unwrap();
    // It stops when it has become what it stands for.
    let stopped = Some(nix::sys::wait::WaitPidFlag::WSTOPPED);
    nix::sys::wait::waitpid(Pid::from_raw(shim.id().cast_signed()), stopped).unwrap();
    shim
}

async fn is_killed(mut shim: std::process::Child) {
    let ended = tokio::time::timeout(Duration::from_secs(30), tokio::task::spawn_blocking(move || shim.wait()));
    let status = ended.await.unwrap().unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

/// A shim that was being started when containerd was killed has no bundle and no child.
#[tokio::test]
async fn a_shim_without_a_container_ends_with_its_containerd() {
    let mut world = World::start("forsaken").await;
    world.import().await;
    let spec = world.run("sleep 1000").await;
    let shim = lost_shim(&world);
    kill(Pid::from_raw(world.daemon.pid().cast_signed()), Signal::SIGKILL).unwrap();
    world.daemon.exited().await.unwrap();
    world.daemon = Containerd::spawn(&world.dir.path().join("containerd"), &world.socket).await.unwrap();
    is_killed(shim).await;
    let state = world.runtime.container(&spec.id).await.unwrap().unwrap();
    assert!(matches!(state.status, Status::Running { .. }), "{:?}", state.status);
    world.end().await;
}

/// A shim that hangs at its end is one that containerd has let go of.
#[tokio::test]
async fn a_shim_that_stays_after_its_container_is_ended() {
    let mut world = World::start("stays").await;
    world.import().await;
    let (running, gone) = (world.run("sleep 1000").await, world.run("sleep 1000").await);
    let shim = lost_shim(&world);
    world.runtime.stop(&gone.id, None, Duration::ZERO).await.unwrap();
    world.runtime.remove(&gone.id).await.unwrap();
    is_killed(shim).await;
    let state = world.runtime.container(&running.id).await.unwrap().unwrap();
    assert!(matches!(state.status, Status::Running { .. }), "{:?}", state.status);
    world.end().await;
}

/// As containerd lists them.
fn snapshots(world: &World) -> String {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(&world.socket).args(["--namespace", "k8s.io", "snapshots", "list"]);
    String::from_utf8(ctr.output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn what_a_killed_daemon_prepared_is_removed_by_the_next() {
    let mut world = World::start("prepared").await;
    world.import().await;
    let running = world.run("sleep 1000").await;
    let spec = world.spec("echo again");
    world.runtime.prepare(&spec.id, &spec.image).await.unwrap().unwrap();
    // Made again by the same daemon, as after a start that failed.
    let prepared = world.runtime.prepare(&spec.id, &spec.image).await.unwrap().unwrap();
    assert_eq!(prepared.image.names, ["docker.io/library/busybox:test"]);
    assert_eq!(world.runtime.prepare(&spec.id, "none:1").await.unwrap().map(|p| p.image), None);
    assert!(snapshots(&world).contains(&spec.id));
    let next = world.reconnect().await;
    next.sweep().await.unwrap();
    let left = snapshots(&world);
    assert!(!left.contains(&spec.id) && left.contains(&running.id), "{left}");
    let state = next.container(&running.id).await.unwrap().unwrap();
    assert!(matches!(state.status, Status::Running { .. }), "{:?}", state.status);
    let prepared = next.prepare(&spec.id, &spec.image).await.unwrap().unwrap();
    next.create_on(&spec, prepared).await.unwrap();
    next.start(&spec.id).await.unwrap();
    assert_eq!(next.wait(&spec.id).await.unwrap().code, 0);
    world.end().await;
}

/// The pid of the container's logger.
fn logger(spec: &ContainerSpec) -> Option<i32> {
    let log = spec.log_path.to_string_lossy().into_owned();
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let is = String::from_utf8_lossy(&line).contains(&format!("logger\0{log}\n"));
        is.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    })
}

#[tokio::test]
async fn a_container_outlives_its_loggers_and_its_lines_go_on() {
    let mut world = World::start("logger").await;
    world.import().await;
    let spec =
        world.run("trap '' TERM; i=0; while :; do echo line $i; echo err $i >&2; i=$((i+1)); sleep 0.05; done").await;
    for round in 0..3 {
        // The first is the shim's, the next are ours; the third belongs to a daemon that came later.
        if round == 2 {
            world.runtime = world.reconnect().await;
        }
        eventually("lines come", || log(&spec).lines().count() > 4).await;
        let before = logger(&spec).unwrap();
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        eventually("another logger is there", || logger(&spec).is_some_and(|now| now != before)).await;
        let seen = log(&spec).lines().count();
        eventually("lines go on", || log(&spec).lines().count() > seen + 10).await;
    }
    let text = log(&spec);
    assert!(text.contains("stdout F line 0\n") && text.contains("stderr F err 1\n"), "{text}");
    let lost = (0..15).filter(|at| !text.contains(&format!("line {at}\n"))).count();
    assert!(lost <= 3, "at most what each dead logger held: {lost} lost of\n{text}");
    let state = world.runtime.container(&spec.id).await.unwrap().unwrap();
    assert!(matches!(state.status, Status::Running { .. }), "{:?}", state.status);
    let exit = world.runtime.stop(&spec.id, None, Duration::ZERO).await.unwrap();
    assert_eq!(exit.code, 137);
    eventually("its logger goes with it", || logger(&spec).is_none()).await;
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
    assert_eq!(ended(&mut events, &spec.id).await.code, 137);
    world.runtime.remove(&spec.id).await.unwrap();
    assert!(world.runtime.containers().await.unwrap().is_empty());
    world.end().await;
}

/// Two daemons on one containerd, as when one takes over from the other: the one that comes to an end second, when the other
/// has settled it, announces it all the same.
#[test]
fn every_daemon_announces_an_end() {
    let threads = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // What one of them does not run stands still.
    let (first, second) = (threads(), threads());
    let mut world = first.block_on(World::start("two"));
    first.block_on(world.import());
    let other = second.block_on(world.reconnect());
    let (mut ours, mut theirs) = (world.runtime.events(), other.events());
    let spec = first.block_on(world.run("exit 3"));
    assert_eq!(first.block_on(ended(&mut ours, &spec.id)).code, 3);
    assert_eq!(second.block_on(ended(&mut theirs, &spec.id)).code, 3);
    first.block_on(world.runtime.remove(&spec.id)).unwrap();
    // By an event, and by a waiter of its own; announced once.
    let next = first.block_on(ours.next());
    assert_eq!(next, Event::Removed { id: spec.id });
    first.block_on(world.end());
}

/// How the container ended, from the events.
async fn ended(events: &mut Events, container: &str) -> Exit {
    let ended = async {
        loop {
            if let Event::Exited { id, exit } = events.next().await {
                assert_eq!(id, container);
                return exit;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("its end is announced")
}

/// A runc that hangs once where it deletes a container, as a shim sometimes does for reasons of its own.
const HANGS_ONCE: &str = r#"#!/bin/sh
case " $* " in
*" delete "*) mkdir "$HANG" 2>/dev/null && echo $$ >"$HANG/pid" && exec sleep 600 ;;
esac
exec "$RUNC" "$@"
"#;

/// The child below, with such a runc first on its path.
#[test]
fn a_task_that_is_not_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let (runc, hang) = (dir.path().join("runc"), dir.path().join("hang"));
    fs::write(&runc, HANGS_ONCE).unwrap();
    fs::set_permissions(&runc, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let dirs = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin:/usr/bin";
    let real = dirs.split(':').map(|dir| format!("{dir}/runc")).find(|file| fs::metadata(file).is_ok()).unwrap();
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_whose_task_is_not_let_go", "--ignored", "--nocapture"])
        .env("PATH", format!("{}:{dirs}", dir.path().display()))
        .env("RUNC", real)
        .env("HANG", &hang)
        .status()
        .unwrap();
    // Without its shim it belongs to nobody.
    let hanging: i32 = fs::read_to_string(hang.join("pid")).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(hanging), Signal::SIGKILL).unwrap();
    assert!(done.success());
}

#[tokio::test]
#[ignore = "started by the test above"]
async fn child_whose_task_is_not_let_go() {
    let mut world = World::start("stuck").await;
    world.import().await;
    let mut events = world.runtime.events();
    let spec = world.run("echo words; exit 5").await;
    // Its end is told while its task still hangs.
    let exit = ended(&mut events, &spec.id).await;
    assert_eq!((exit.code, log(&spec).as_str()), (5, "stdout F words\n"));
    let hang = std::env::var("HANG").unwrap();
    let hanging = fs::read_to_string(format!("{hang}/pid")).unwrap();
    assert!(fs::metadata(format!("/proc/{}", hanging.trim())).is_ok());
    // It can be removed, and nothing of it is left.
    world.runtime.remove(&spec.id).await.unwrap();
    assert!(world.runtime.containers().await.unwrap().is_empty());
    world.end().await;
}

/// A shim that hangs where its container ends by itself: the kernel tells how.
#[tokio::test]
async fn an_end_that_the_shim_does_not_tell() {
    let mut world = World::start("mute").await;
    world.import().await;
    let mut events = world.runtime.events();
    let spec = world.spec("trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done");
    world.runtime.create(&spec).await.unwrap();
    let pid = world.runtime.start(&spec.id).await.unwrap();
    eventually("it listens", || log(&spec).contains("up")).await;
    kill(Pid::from_raw(parent(pid)), Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
    let exit = ended(&mut events, &spec.id).await;
    assert_eq!(exit.code, 5);
    world.runtime.remove(&spec.id).await.unwrap();
    assert!(world.runtime.containers().await.unwrap().is_empty());
    world.end().await;
}
