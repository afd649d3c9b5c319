//! `cargo xtask box`: the Vagrant box of `vagrant/`'s labs. A Debian 12 that boots by itself, with its own kernel, systemd and
//! everything that the machines of a lab need beside Sluice, so that a lab downloads nothing. No machine, loop device or
//! mount is needed to make it: debootstrap fills a tree, `mke2fs -d` a file system, and GRUB is written before it.

mod disk;
mod provider;
mod root;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;
use provider::Provider;

use crate::{setup, sh};

/// The name under which the labs look for it.
const NAME: &str = "sluice/debian12";
/// What a machine's disk may grow to, in GiB. The box's own file holds what is on it.
const SIZE: u64 = 20;

#[derive(Args)]
pub(crate) struct Options {
    /// What is to run the machines
    #[arg(long, value_enum, default_value = "libvirt")]
    provider: Provider,
    /// Remove what this task made: the boxes' files, the box that Vagrant keeps of it, and libvirt's copy
    #[arg(long, conflicts_with = "provider")]
    remove: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    sh::require_root("cargo xtask box")?;
    if options.remove {
        return remove();
    }
    setup::ensure(setup::Purpose::Box)?;
    let begun = Instant::now();
    let file = build(options.provider)?;
    let size = fs::metadata(&file)?.len() as f64 / 1e6;
    println!("{} ({size:.0} MB, after {:.0} s)", file.display(), begun.elapsed().as_secs_f64());
    println!("next: vagrant box add --force --name {NAME} {}", file.display());
    Ok(())
}

fn folder() -> PathBuf {
    sh::target().join("box")
}

fn build(provider: Provider) -> Result<PathBuf> {
    let out = folder();
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let work = tempfile::tempdir_in(&out)?;
    let (root, made) = (work.path().join("root"), work.path().join("made"));
    fs::create_dir(&made)?;
    root::prepare(&root)?;
    sh::step("making the disk");
    disk::build(&root, &made.join(provider.disk()), SIZE, provider.form())?;
    let mut files = provider.describe(&made, SIZE)?;
    files.push(provider.disk());
    let file = out.join(provider.file());
    pack(&made, &files, &file)?;
    Ok(file)
}

/// The disk is packed already.
fn pack(made: &Path, files: &[&str], file: &Path) -> Result<()> {
    let fresh = file.with_extension("new");
    let mut tar = sh::command("tar");
    sh::output(tar.arg("-C").arg(made).arg("-cf").arg(&fresh).args(files))?;
    fs::rename(&fresh, file).with_context(|| format!("cannot make {}", file.display()))
}

/// Each part may be gone already; what cannot be removed is an error all the same.
fn remove() -> Result<()> {
    if sh::which("vagrant").is_some() && sh::output(sh::command("vagrant").args(["box", "list"]))?.contains(NAME) {
        sh::output(sh::command("vagrant").args(["box", "remove", "--all", "--force", NAME]))?;
        println!("removed Vagrant's box {NAME}");
    }
    if sh::which("virsh").is_some() {
        remove_volumes()?;
    }
    match fs::remove_dir_all(folder()) {
        Ok(()) => println!("removed {}", folder().display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", folder().display())),
    }
    Ok(())
}

/// libvirt keeps a copy of each box that a machine was made of, and Vagrant leaves it behind.
fn remove_volumes() -> Result<()> {
    let virsh = |words: &[&str]| sh::output(sh::command("virsh").args(["--connect", "qemu:///system"]).args(words));
    let Ok(listed) = virsh(&["vol-list", "--pool", "default"]) else {
        println!("libvirt was not asked: it does not run here, or has no pool");
        return Ok(());
    };
    for volume in volumes(&listed) {
        virsh(&["vol-delete", "--pool", "default", volume])?;
        println!("removed libvirt's volume {volume}");
    }
    Ok(())
}

/// Of libvirt's list of volumes, those that Vagrant made of this box.
fn volumes(listed: &str) -> impl Iterator<Item = &str> {
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("sluice-VAGRANTSLASH-debian12_vagrant_box_image_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_boxes_own_volumes_are_removed() {
        let listed = " Name                                                        Path\n\
                      ----------------------------------------------------------------\n \
                      cluster_node1.img    /images/cluster_node1.img\n \
                      sluice-VAGRANTSLASH-debian12_vagrant_box_image_0_17_box.img    /images/x.img\n \
                      debian-VAGRANTSLASH-debian12_vagrant_box_image_0_17_box.img    /images/y.img\n";
        let found: Vec<_> = volumes(listed).collect();
        assert_eq!(found, ["sluice-VAGRANTSLASH-debian12_vagrant_box_image_0_17_box.img"]);
    }

    #[test]
    fn the_labs_look_for_this_box() {
        let labs = fs::read_to_string(sh::root().join("vagrant/lab.rb")).unwrap();
        assert!(labs.contains(&format!("'SLUICE_BOX', '{NAME}'")));
    }
}
