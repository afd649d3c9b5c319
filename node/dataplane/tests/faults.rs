//! What can be wrong with a machine, and what is said about it.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{connect, isolated, service, tcp_server};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use sluice_dataplane::model::Protocol;
use sluice_dataplane::{Dataplane, Error, Uplinks};

const BPFFS: &str = "/sys/fs/bpf";

#[test]
fn a_missing_bpf_file_system_is_mounted() {
    isolated("a_missing_bpf_file_system_is_mounted", |place| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        umount2(BPFFS, MntFlags::MNT_DETACH).unwrap();
        let dataplane = Dataplane::load(place.config()).unwrap();
        tcp_server("127.0.0.2:8001");
        dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 0, &["127.0.0.2:8001"])).unwrap();
        assert!(connect("10.96.0.10:80").is_ok());
        drop(dataplane);
        // The mount ends with this process; its pins keep the programs until then.
        Dataplane::remove_all(&place.pins).unwrap();
    });
}

#[test]
fn without_rights_one_sentence_says_which() {
    isolated("without_rights_one_sentence_says_which", |place| {
        let nobody = nix::unistd::Uid::from_raw(65534);
        nix::unistd::seteuid(nobody).unwrap();
        let error = Dataplane::load(place.config()).err().unwrap();
        nix::unistd::seteuid(nix::unistd::Uid::from_raw(0)).unwrap();
        assert!(matches!(error, Error::Permission), "{error:?}");
        assert!(error.to_string().contains("CAP_BPF"), "{error}");
        assert!(!place.pins.exists());
    });
}

#[test]
fn a_start_that_fails_leaves_nothing_or_what_was_there() {
    isolated("a_start_that_fails_leaves_nothing_or_what_was_there", |place| {
        let broken = || {
            let mut config = place.config();
            config.uplinks = Uplinks::Named(vec!["nosuch0".into()]);
            Dataplane::load(config).err().unwrap()
        };
        assert!(broken().to_string().contains("nosuch0"), "{}", broken());
        assert!(!place.pins.exists());
        let first = Dataplane::load(place.config()).unwrap();
        tcp_server("127.0.0.2:8001");
        first.apply(&service(Protocol::Tcp, "10.96.0.10:80", 0, &["127.0.0.2:8001"])).unwrap();
        drop(first);
        broken();
        assert!(connect("10.96.0.10:80").is_ok());
    });
}

#[test]
fn nothing_loaded_is_said_as_such() {
    let error = sluice_dataplane::services(Path::new("/sys/fs/bpf/sluice-nobody")).err().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "no data plane is loaded under /sys/fs/bpf/sluice-nobody/v{}: is `sluice up` or `sluice node` running?",
            sluice_ebpf_common::SCHEMA
        )
    );
}

#[test]
fn a_cgroup_that_is_gone_shows_in_the_status() {
    isolated("a_cgroup_that_is_gone_shows_in_the_status", |place| {
        let cgroup = place.elsewhere.join("short");
        std::fs::create_dir(&cgroup).unwrap();
        let mut config = place.config();
        config.cgroup = Some(cgroup.clone());
        let dataplane = Dataplane::load(config).unwrap();
        assert_eq!(dataplane.status().unwrap().problems, Vec::<String>::new());
        assert!(dataplane.status().unwrap().programs.iter().all(|row| Path::new(&row.attached) == cgroup));
        std::fs::remove_dir(&cgroup).unwrap();
        let start = std::time::Instant::now();
        while dataplane.status().unwrap().problems.is_empty() && start.elapsed() < common::PATIENCE {}
        assert!(dataplane.status().unwrap().problems[0].contains("restart the node daemon"));
        // A new process attaches where it should be again.
        let next = Dataplane::load(place.config()).unwrap();
        assert_eq!(next.status().unwrap().problems, Vec::<String>::new());
    });
}
#[test]
fn a_loaded_data_plane_is_small() {
    isolated("a_loaded_data_plane_is_small", |place| {
        let anonymous = || {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = text.lines().find(|line| line.starts_with("RssAnon")).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = anonymous();
        let _dataplane = Dataplane::load(place.config()).unwrap();
        let grown = anonymous() - before;
        println!("grown by {grown} kB");
        assert!(grown < 6_000, "{grown} kB");
    });
}
