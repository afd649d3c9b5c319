//! What a pod specification can ask of a container, seen from inside it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use common::{World, busybox_layer, config, eventually, log, sha256};
use sluice_runtime::cgroup::Qos;
use sluice_runtime::{
    ContainerSpec, Device, Error, Mount, MountSource, PidMode, Propagation, Resources, Seccomp, Status,
};

/// Runs a container to its end; returns its log and exit code.
async fn outcome(world: &World, spec: &ContainerSpec) -> (String, i32) {
    world.runtime.create(spec).await.unwrap();
    world.runtime.start(&spec.id).await.unwrap();
    let mut events = world.runtime.events();
    let code = match tokio::time::timeout(Duration::from_secs(30), world.runtime.wait(&spec.id)).await {
        Ok(exit) => exit.unwrap().code,
        Err(_) => panic!("it does not end:\n{}", log(spec)),
    };
    // The end is announced when the log is whole.
    loop {
        match world.runtime.container(&spec.id).await.unwrap().unwrap().status {
            Status::Exited(_) if log(spec).contains("END") => return (log(spec), code),
            _ => drop(tokio::time::timeout(Duration::from_millis(50), events.next()).await),
        }
    }
}

async fn says(world: &mut World, script: &str, change: impl FnOnce(&mut ContainerSpec)) -> String {
    let mut spec = world.spec(&format!("exec 2>&1; {script}; echo END"));
    change(&mut spec);
    outcome(world, &spec).await.0
}

#[tokio::test]
async fn a_container_is_confined_as_upstreams_are() {
    let mut world = World::start("confined").await;
    world.import().await;
    let text = says(&mut world, "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/kcore | head -c1; echo x > /proc/sys/kernel/hostname; ls -d /sys/fs/cgroup/*; cat /dev/zero | head -c 3 > /dev/shm/f && ls /dev/shm", |_| {}).await;
    // The default capabilities and no others.
    assert!(text.contains("CapEff:\t00000000a80425fb") && text.contains("CapBnd:\t00000000a80425fb"), "{text}");
    assert!(text.contains("NoNewPrivs:\t0") && text.contains("Seccomp:\t0"), "{text}");
    assert!(text.contains("hostname: Read-only file system"), "{text}");
    assert!(text.ends_with("f\nstdout F END\n"), "{text}");

    let text = says(&mut world, "grep -E 'CapBnd|NoNewPrivs' /proc/self/status; echo x > /file; id", |spec| {
        spec.security.drop_capabilities = vec!["ALL".into()];
        spec.security.add_capabilities = vec!["NET_BIND_SERVICE".into()];
        spec.security.no_new_privileges = true;
        spec.security.read_only_root = true;
        spec.security.run_as_user = Some(1000);
        spec.security.run_as_group = Some(2000);
        spec.security.supplemental_groups = vec![3000];
    })
    .await;
    assert!(text.contains("CapBnd:\t0000000000000400") && text.contains("NoNewPrivs:\t1"), "{text}");
    assert!(
        text.contains("/file: Read-only file system") && text.contains("uid=1000 gid=2000 groups=2000,3000"),
        "{text}"
    );

    let text = says(
        &mut world,
        "grep CapBnd /proc/self/status; ls /dev/null /dev/kmsg; mount -t tmpfs none /tmp && echo mounted",
        |spec| {
            spec.security.privileged = true;
            // Lower than can be set without CAP_SYS_RESOURCE: left out there, not fatal.
            spec.resources.oom_score_adj = Some(-997);
        },
    )
    .await;
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("CapPrm")).unwrap().replace("CapPrm", "CapBnd");
    assert!(text.contains(&own) && text.contains("mounted"), "{own} {text}");

    let text = says(&mut world, "grep Seccomp: /proc/self/status; unshare -U true || echo denied", |spec| {
        spec.security.seccomp = Seccomp::RuntimeDefault;
    })
    .await;
    assert!(text.contains("Seccomp:\t2") && text.contains("denied"), "{text}");
    world.end().await;
}

#[tokio::test]
async fn mounts_devices_and_namespaces_are_as_asked() {
    let mut world = World::start("mounts").await;
    world.import().await;
    let host = world.dir.path().join("volume");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("hello"), "from the host\n").unwrap();
    fs::set_permissions(&host, fs::Permissions::from_mode(0o777)).unwrap();
    let bind = |source: PathBuf, to: &str, read_only| Mount {
        source: MountSource::Bind(source),
        destination: to.into(),
        read_only,
        propagation: Propagation::None,
    };
    let script =
        "cat /a/b/hello; echo x > /ro/x; echo back > /a/b/back; df -k /dev/shm /scratch | tail -2; ls -l /dev/mine";
    let mounts = vec![
        bind(host.clone(), "/a/b", false),
        bind(host.clone(), "/ro", true),
        Mount { source: MountSource::Tmpfs { size: Some(8 << 20) }, ..bind(host.clone(), "/scratch", false) },
        Mount { source: MountSource::Tmpfs { size: Some(4 << 20) }, ..bind(host.clone(), "/dev/shm", false) },
    ];
    let text = says(&mut world, script, |spec| {
        spec.mounts = mounts;
        spec.devices = vec![Device {
            host_path: "/dev/null".into(),
            container_path: "/dev/mine".into(),
            permissions: "rw".into(),
        }];
    })
    .await;
    assert!(text.contains("from the host") && text.contains("/ro/x: Read-only file system"), "{text}");
    assert!(text.contains("4096") && text.contains("8192") && text.contains("1,   3"), "{text}");
    assert_eq!(fs::read_to_string(host.join("back")).unwrap(), "back\n");

    // Processes of the pod's first container are seen by one that shares.
    let first = world.run("exec sleep 1000").await;
    let Status::Running { pid, .. } = world.runtime.container(&first.id).await.unwrap().unwrap().status else {
        panic!()
    };
    let text = says(&mut world, "cat /proc/1/cmdline; hostname", |spec| spec.pid = PidMode::Of(pid)).await;
    assert!(text.contains("sleep") && text.contains("web"), "{text}");

    // A network namespace made beforehand, its own sysctls, and the host's.
    let pinned = format!("/proc/{pid}/ns/net");
    let link = fs::read_link(&pinned).unwrap().display().to_string();
    let text = says(&mut world, "ls -l /proc/self/ns/net", |spec| spec.netns = Some(pinned.into())).await;
    assert!(text.contains(&link), "{text}");
    let text = says(&mut world, "cat /proc/sys/kernel/shm_rmid_forced", |spec| {
        spec.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    })
    .await;
    assert!(text.contains("stdout F 1\n"), "{text}");
    world.end().await;
}

#[tokio::test]
async fn limits_hold_and_running_out_of_memory_is_told() {
    let mut world = World::start("limits").await;
    world.import().await;
    let cgroups = world.runtime.cgroups().clone();
    let limits = Resources { memory_limit: Some(64 << 20), cpu_shares: Some(204), ..Resources::default() };
    world.pod_cgroup = cgroups.pod(Qos::Burstable, "pod2");
    cgroups.create(&world.pod_cgroup, &limits).unwrap();
    let mut spec = world.spec("echo up; tail /dev/zero");
    spec.resources = Resources { memory_limit: Some(16 << 20), pids_limit: Some(50), ..limits };
    world.runtime.create(&spec).await.unwrap();
    world.runtime.start(&spec.id).await.unwrap();
    // The shell dies of its child's death or with it, as the kernel chooses.
    let exit = world.runtime.wait(&spec.id).await.unwrap();
    assert!(exit.oom_killed && exit.code == 137, "{exit:?}");
    // Written down: so is it after the task and its cgroup have gone.
    let again = world.reconnect().await;
    let state = again.container(&spec.id).await.unwrap().unwrap();
    assert!(matches!(&state.status, Status::Exited(end) if end.oom_killed), "{:?}", state.status);
    world.end().await;
}

#[tokio::test]
async fn what_cannot_run_says_why_and_leaves_nothing() {
    let mut world = World::start("refused").await;
    world.import().await;
    let mut spec = world.spec("true");
    spec.command = vec!["/none".into()];
    let error = world.runtime.create(&spec).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused(text) if text.contains("/none") && text.contains("no such file or directory")),
        "{error}"
    );
    let mut spec = world.spec("true");
    spec.image = "absent:1".into();
    assert!(matches!(world.runtime.create(&spec).await, Err(Error::ImageMissing(_))));
    let mut spec = world.spec("true");
    spec.security.run_as_non_root = true;
    assert!(matches!(world.runtime.create(&spec).await, Err(Error::RunAsRoot)));
    let mut spec = world.spec("true");
    spec.security.add_capabilities = vec!["FLY".into()];
    let error = world.runtime.create(&spec).await.unwrap_err();
    assert_eq!(error.to_string(), "unknown capability \"FLY\"");
    let mut spec = world.spec("true");
    spec.id = "../up".into();
    assert!(matches!(world.runtime.create(&spec).await, Err(Error::InvalidSpec(_))));
    assert!(world.runtime.containers().await.unwrap().is_empty());
    assert!(
        !fs::exists(world.dir.path().join("run/io")).unwrap()
            || fs::read_dir(world.dir.path().join("run/io")).unwrap().next().is_none()
    );
    assert!(matches!(world.runtime.wait("none").await, Err(Error::NotFound(_))));
    assert!(matches!(world.runtime.stop("none", None, Duration::ZERO).await, Err(Error::NotFound(_))));
    world.end().await;
}

#[tokio::test]
async fn archives_of_every_kind_are_imported() {
    let world = World::start("archives").await;
    let dir = world.dir.path();

    // `docker save | gzip`.
    common::busybox_archive(&dir.join("plain.tar"), "gz/app:1");
    let plain = fs::read(dir.join("plain.tar")).unwrap();
    let mut gzip =
        flate2::write::GzEncoder::new(fs::File::create(dir.join("app.tar.gz")).unwrap(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    gzip.finish().unwrap();
    let images = world.runtime.import(&dir.join("app.tar.gz")).await.unwrap();
    assert_eq!(images[0].names, ["docker.io/gz/app:1"]);

    // OCI layout with a gzipped layer.
    let layer = busybox_layer();
    let config = config(&layer);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &layer).unwrap();
    let layer = gzip.finish().unwrap();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{}","size":{}}}]}}"#,
        sha256(config.as_bytes()),
        config.len(),
        sha256(&layer),
        layer.len()
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":{},"annotations":{{"io.containerd.image.name":"oci/app:2"}}}}]}}"#,
        sha256(manifest.as_bytes()),
        manifest.len()
    );
    let blob = |data: &[u8]| format!("blobs/sha256/{}", sha256(data));
    let files: Vec<(String, &[u8])> = vec![
        (blob(&layer), &layer),
        (blob(config.as_bytes()), config.as_bytes()),
        (blob(manifest.as_bytes()), manifest.as_bytes()),
        ("index.json".into(), index.as_bytes()),
        ("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#),
    ];
    write_tar(&dir.join("oci.tar"), &files);
    let images = world.runtime.import(&dir.join("oci.tar")).await.unwrap();
    assert_eq!(
        (images[0].names.as_slice(), images[0].id.as_str()),
        (&["docker.io/oci/app:2".to_owned()][..], &*format!("sha256:{}", sha256(config.as_bytes())))
    );
    let again = world.runtime.import(&dir.join("oci.tar")).await.unwrap();
    assert_eq!(again, images);
    world.runtime.remove_image("oci/app:2").await.unwrap();
    world.runtime.remove_image("oci/app:2").await.unwrap();
    assert!(world.runtime.image("oci/app:2").await.unwrap().is_none());

    // No images.
    write_tar(&dir.join("empty.tar"), &[("readme".into(), b"hello")]);
    let error = world.runtime.import(&dir.join("empty.tar")).await.unwrap_err();
    assert!(error.to_string().contains("is it made by `docker save`?"), "{error}");
    let files: Vec<(String, &[u8])> = files.into_iter().filter(|(name, _)| *name != blob(&layer)).collect();
    write_tar(&dir.join("short.tar"), &files);
    assert!(matches!(
        world.runtime.import(&dir.join("short.tar")).await,
        Ok(_) | Err(Error::Import(_) | Error::NotFound(_))
    ));
    fs::write(dir.join("noise"), [7; 2048]).unwrap();
    assert!(matches!(world.runtime.import(&dir.join("noise")).await, Err(Error::Import(_))));
    assert!(matches!(world.runtime.import(&dir.join("none")).await, Err(Error::Import(_))));
    eventually("nothing more", || true).await;
    world.end().await;
}

fn write_tar(path: &std::path::Path, files: &[(String, &[u8])]) {
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        archive.append_data(&mut header, name, *data).unwrap();
    }
    archive.finish().unwrap();
}
