//! The disk below the store is full: writes are refused and say why, everything that runs goes on, what is deleted goes, and
//! with room again all is as it should be.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
};
use sluice_e2e::{Lab, Options, sample_image, step, until};

const MANIFEST: &str = include_str!("../../../xtask/samples/echo.yaml");
const REASON: &str = "bytes free";
const ALL_ANSWER: &str = "exec deployment/echo -- /echo get http://echo/ --distinct 3";
const PATIENCE: Duration = Duration::from_secs(60);

/// A small disk of its own for what a folder holds.
struct Disk(PathBuf);

impl Disk {
    fn put_below(folder: &Path) -> Result<Self> {
        let before = folder.with_extension("before");
        fs::rename(folder, &before)?;
        fs::create_dir(folder)?;
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("size=96m,mode=700"))?;
        let disk = Self(folder.to_owned());
        for entry in fs::read_dir(&before)? {
            let entry = entry?;
            fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
        Ok(disk)
    }

    /// Writes until there is no room left.
    fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.0.join("others"))?;
        while file.write_all(&[1; 1 << 20]).is_ok() {}
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("others"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The daemon may still have files open there.
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

fn refused(lab: &Lab, words: &str) -> Result<()> {
    let Err(error) = lab.kubectl(words) else { bail!("{words} succeeded") };
    let error = format!("{error:#}");
    ensure!(error.contains(REASON), "{words}: {error}");
    Ok(())
}

#[test]
fn a_full_disk_stops_writes_alone() -> Result<()> {
    let mut lab = Lab::start(&Options::one("sefd"))?;
    lab.import(&sample_image())?;
    lab.apply(MANIFEST)?;
    lab.kubectl("rollout status deployment/echo --timeout=120s")?;
    lab.kubectl("create configmap before")?;
    lab.node(1).end(Signal::SIGTERM)?;
    let disk = Disk::put_below(&lab.nodes()[0].data_dir().join("store"))?;
    lab.node(1).restart()?;
    lab.kubectl("create configmap with-room")?;
    disk.fill()?;
    step("writes are refused, reads and pods go on", || {
        refused(&lab, "create configmap late")?;
        refused(&lab, "scale deployment echo --replicas=4")?;
        ensure!(lab.kubectl("get configmap before -o name")?.trim() == "configmap/before");
        lab.kubectl(ALL_ANSWER).map(drop)
    })?;
    step("a container that ends is started again", || {
        let first = lab.nodes()[0].contained()?.first().copied();
        let Some(pid) = first else { bail!("no container runs") };
        kill(pid, Signal::SIGKILL)?;
        // Nobody could write down that it is away: it is asked until it answers.
        until(PATIENCE, || lab.kubectl(ALL_ANSWER).map(drop))
    })?;
    step("what is deleted goes", || {
        lab.kubectl("delete configmap before")?;
        ensure!(lab.kubectl("get configmaps")?.lines().all(|line| !line.starts_with("before")));
        Ok(())
    })?;
    step("a server that starts meanwhile serves what there is", || {
        lab.node(1).end(Signal::SIGTERM)?;
        lab.node(1).restart()?;
        ensure!(lab.kubectl("get configmap with-room -o name")?.trim() == "configmap/with-room");
        refused(&lab, "create configmap late")
    })?;
    disk.clear()?;
    step("with room again all is as it should be", || {
        lab.kubectl("create configmap late")?;
        lab.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
        lab.kubectl("scale deployment echo --replicas=4")?;
        lab.kubectl("rollout status deployment/echo --timeout=120s")?;
        // What the node could not tell meanwhile.
        let restarts = "get pods -l app=echo -o jsonpath={.items[*].status.containerStatuses[0].restartCount}";
        until(PATIENCE, || {
            let counts = lab.kubectl(restarts)?;
            ensure!(counts.split(' ').filter(|count| *count == "1").count() == 1, "restarts: {counts}");
            Ok(())
        })?;
        lab.kubectl(ALL_ANSWER).map(drop)
    })
}
