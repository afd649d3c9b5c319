//! Output and input of containers: complete, whoever dies.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{World, eventually, log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_runtime::daemon::Containerd;
use sluice_runtime::logs::{LogOptions, read};
use sluice_runtime::{ContainerSpec, Event, Status, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn whole_log(spec: &ContainerSpec) -> String {
    let mut chunks = read(&spec.log_path, LogOptions::default(), std::future::pending());
    let mut text = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// The logger process of a container, by its arguments.
fn logger_of(spec: &ContainerSpec) -> Option<i32> {
    let log = spec.log_path.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut loggers = processes.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        (arguments.contains("\0logger\0") && arguments.contains(log)).then_some(pid)
    });
    loggers.next()
}

#[tokio::test]
async fn every_line_is_logged_over_rotations_and_restarts() {
    let mut world = World::start("lines").await;
    world.import().await;
    let mut events = world.runtime.events();
    let spec = world.run("seq 1 150000; cat /dev/zero | dd bs=1000 count=40 2>/dev/null; seq 150001 300000").await;
    // Neither our own end nor containerd's touches the output.
    world.daemon.stop().await.unwrap();
    let text_before = fs::metadata(&spec.log_path).map(|about| about.len()).unwrap_or_default();
    eventually("output goes on without containerd", || {
        spec.log_path.with_file_name("0.log").metadata().map_or(0, |about| about.len()) != text_before
            || logger_of(&spec).is_none()
    })
    .await;
    world.daemon = Containerd::spawn(&world.dir.path().join("containerd"), &world.socket).await.unwrap();
    loop {
        match events.next().await {
            Event::Resync => break,
            other => println!("{other:?}"),
        }
    }
    assert_eq!(world.runtime.wait(&spec.id).await.unwrap().code, 0);
    eventually("the logger has ended", || logger_of(&spec).is_none()).await;
    let text = whole_log(&spec).await;
    let numbers = text.lines().filter(|line| !line.contains('\0'));
    assert!(
        numbers.eq((1..=300_000).filter(|n| *n != 150_001).map(|n| n.to_string())),
        "lines are missing or out of order"
    );
    assert!(fs::read_dir(spec.log_path.parent().unwrap()).unwrap().count() > 1, "no rotation");
    world.end().await;
}

#[tokio::test]
async fn a_daemon_that_starts_again_finds_what_ended_meanwhile() {
    let mut world = World::start("meanwhile").await;
    world.import().await;
    let spec = world.run("sleep 0.3; exit 9").await;
    let config = world.runtime.config().clone();
    // As kill -9: nothing of the old runtime runs on.
    let old = std::mem::replace(
        &mut world.runtime,
        common::connect(world.dir.path(), &world.socket, &config.cgroup_prefix).await,
    );
    drop(old);
    assert_eq!(world.runtime.wait(&spec.id).await.unwrap().code, 9);
    let again = world.reconnect().await;
    eventually("its task is let go", || true).await;
    let state = again.container(&spec.id).await.unwrap().unwrap();
    assert!(matches!(&state.status, Status::Exited(exit) if exit.code == 9), "{:?}", state.status);
    world.end().await;
}

#[tokio::test]
async fn input_reaches_a_container_until_its_end() {
    let mut world = World::start("stdin").await;
    world.import().await;
    let mut spec = world.spec("cat; echo done >&2");
    (spec.stdin, spec.stdin_once) = (true, true);
    let runtime = world.runtime.clone();
    runtime.create(&spec).await.unwrap();
    let mut attached = runtime.attach(&spec.id).await.unwrap();
    runtime.start(&spec.id).await.unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    eventually("input is echoed", || log(&spec).contains("stdout F hello")).await;

    // The logger dies (with a daemon that was killed): a new daemon starts another, nothing is lost.
    kill(Pid::from_raw(logger_of(&spec).unwrap()), Signal::SIGKILL).unwrap();
    eventually("the logger is gone", || logger_of(&spec).is_none()).await;
    stdin.write_all(b"meanwhile\n").await.unwrap();
    let again = world.reconnect().await;
    let mut second = again.attach(&spec.id).await.unwrap();
    eventually("output is logged again", || log(&spec).contains("stdout F meanwhile")).await;
    drop(second.stdin.take());
    stdin.write_all(b"end\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    second.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    second.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    assert!(out.ends_with("end\n") && err == "done\n", "{out:?} {err:?}");
    assert_eq!(second.wait().await.unwrap(), 0);
    world.end().await;
}

#[tokio::test]
async fn a_terminal_can_be_attached_to() {
    let mut world = World::start("tty").await;
    world.import().await;
    let mut spec = world.spec("read a; stty size; read b; exit 4");
    (spec.stdin, spec.tty) = (true, true);
    let runtime = world.runtime.clone();
    runtime.create(&spec).await.unwrap();
    runtime.start(&spec.id).await.unwrap();
    let mut attached = runtime.attach(&spec.id).await.unwrap();
    attached.resize(TerminalSize { columns: 77, rows: 11 }).await.unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    stdin.write_all(b"a\n").await.unwrap();
    eventually("the size is printed", || log(&spec).contains("11 77")).await;
    // Leaving does not end a terminal's container; coming back works.
    drop((stdin, attached));
    let mut again = runtime.attach(&spec.id).await.unwrap();
    again.stdin.as_mut().unwrap().write_all(b"b\n").await.unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(10), runtime.wait(&spec.id)).await.unwrap().unwrap();
    assert_eq!(exit.code, 4);
    let mut text = String::new();
    again.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.contains('b'), "{text:?}");
    eventually("the logger has ended", || logger_of(&spec).is_none()).await;
    assert!(Path::new(&spec.log_path).exists());
    world.end().await;
}
