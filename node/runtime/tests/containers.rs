//! Containers from beginning to end, in a real containerd.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{World, eventually, log};
use sluice_runtime::{Error, Event, ExecSpec, Status, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_container_lives_and_dies() {
    let mut world = World::start("life").await;
    world.import().await;
    let runtime = world.runtime.clone();
    let mut events = runtime.events();

    let image = runtime.image("busybox:test").await.unwrap().unwrap();
    assert_eq!(image.names, ["docker.io/library/busybox:test"]);
    assert!(runtime.image(&image.id).await.unwrap().is_some() && runtime.image("other").await.unwrap().is_none());

    let script =
        "echo out; echo err >&2; id; pwd; hostname; echo $FROM $OWN; trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let mut spec = world.spec(script);
    spec.env = vec![("OWN".into(), "pod".into())];
    spec.security.run_as_user = Some(101);
    spec.labels.insert("io.sluice.spec-hash".into(), "h1".into());
    runtime.create(&spec).await.unwrap();
    let created = runtime.container(&spec.id).await.unwrap().unwrap();
    assert_eq!(created.status, Status::Created);
    let pid = runtime.start(&spec.id).await.unwrap();
    assert_eq!(events.next().await, Event::Started { id: spec.id.clone(), pid });

    eventually("all lines are in the log", || log(&spec).contains("image pod")).await;
    let text = log(&spec);
    for line in [
        "stdout F out",
        "stderr F err",
        "stdout F uid=101(web) gid=102(web) groups=7(logs),102(web)",
        "stdout F /tmp",
        "stdout F web",
        "stdout F image pod",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }

    // A daemon that starts again finds it, and needs nothing but containerd.
    let again = world.reconnect().await;
    let found = again.containers().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(matches!(found[0].status, Status::Running { pid: found, .. } if found == pid));
    assert_eq!((found[0].name.as_str(), found[0].labels["io.sluice.spec-hash"].as_str()), ("main1", "h1"));
    let stats = again.stats(&spec.id).await.unwrap();
    assert!(stats.cpu_usage > Duration::ZERO && stats.memory_working_set > 0 && stats.pids >= 1, "{stats:?}");

    let exit = runtime.stop(&spec.id, None, Duration::from_secs(10)).await.unwrap();
    assert_eq!((exit.code, exit.oom_killed), (7, false));
    let seen = loop {
        if let Event::Exited { id, exit } = events.next().await {
            assert_eq!(id, spec.id);
            break exit;
        }
    };
    assert_eq!(seen, exit);
    assert_eq!(runtime.wait(&spec.id).await.unwrap(), exit);
    assert!(matches!(runtime.container(&spec.id).await.unwrap().unwrap().status, Status::Exited(end) if end == exit));

    runtime.remove(&spec.id).await.unwrap();
    runtime.remove(&spec.id).await.unwrap();
    assert!(runtime.containers().await.unwrap().is_empty());
    world.end().await;
}

#[tokio::test]
async fn a_container_that_is_not_listening_yet_is_told_again() {
    let mut world = World::start("deaf").await;
    world.import().await;
    let spec = world.run("echo up; sleep 0.7; trap 'exit 3' TERM; while :; do sleep 0.1; done").await;
    eventually("the shell is there", || log(&spec).contains("up")).await;
    let exit = world.runtime.stop(&spec.id, None, Duration::from_secs(60)).await.unwrap();
    assert_eq!(exit.code, 3, "the first process of a namespace does not get signals that it does not catch");
    world.end().await;
}

#[tokio::test]
async fn a_container_that_ignores_the_signal_is_killed() {
    let mut world = World::start("kill").await;
    world.import().await;
    let spec = world.run("trap '' TERM; echo up; while :; do sleep 1; done").await;
    eventually("it is up", || log(&spec).contains("up")).await;
    let exit = world.runtime.stop(&spec.id, Some("SIGTERM"), Duration::from_millis(300)).await.unwrap();
    assert_eq!(exit.code, 137);
    world.end().await;
}

#[tokio::test]
async fn commands_run_in_a_container() {
    let mut world = World::start("exec").await;
    world.import().await;
    let spec = world.run("sleep 1000").await;
    let runtime = world.runtime.clone();
    let sh = |script: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];

    let done = runtime.exec_sync(&spec.id, sh("echo out; echo err >&2; exit 3"), None).await.unwrap();
    assert_eq!((done.code, done.stdout.as_slice(), done.stderr.as_slice()), (3, &b"out\n"[..], &b"err\n"[..]));
    let late = runtime.exec_sync(&spec.id, sh("sleep 100"), Some(Duration::from_millis(200))).await;
    assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
    let missing = runtime.exec_sync(&spec.id, vec!["none".into()], None).await.unwrap_err().to_string();
    assert!(missing.contains("executable file not found in $PATH"), "{missing}");

    // Input until its end, output of any length.
    let spec_cat = ExecSpec { argv: vec!["cat".into()], stdin: true, stdout: true, ..ExecSpec::default() };
    let mut cat = runtime.exec(&spec.id, spec_cat).await.unwrap();
    let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let data = vec![b'x'; 1 << 20];
    let sent = data.clone();
    let writer = tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    stdout.read_to_end(&mut got).await.unwrap();
    writer.await.unwrap();
    assert!(got == data, "{} bytes came back", got.len());
    assert_eq!(cat.wait().await.unwrap(), 0);

    // A terminal with a size.
    let size = Some(TerminalSize { columns: 91, rows: 33 });
    let argv = sh("read go; stty size; echo $TERM");
    let spec_tty = ExecSpec { argv, tty: true, stdin: true, stdout: true, size, ..ExecSpec::default() };
    let mut tty = runtime.exec(&spec.id, spec_tty).await.unwrap();
    tty.resize(TerminalSize { columns: 81, rows: 21 }).await.unwrap();
    tty.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    let mut text = String::new();
    tty.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.contains("21 81") && text.contains("xterm"), "{text:?}");
    assert_eq!(tty.wait().await.unwrap(), 0);
    world.end().await;
}
