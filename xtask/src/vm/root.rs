//! The box's file tree: debootstrap's smallest Debian 12, with the packages of a lab's machines and the user that Vagrant
//! comes in as.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, Result};

use crate::{dist, sh};

const SUITE: &str = "bookworm";

/// A machine that boots and lets Vagrant in; what Sluice's package depends on and recommends; what the labs use besides.
const PACKAGES: &[&str] = &[
    "linux-image-amd64",
    "grub-pc-bin",
    "grub-common",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "apparmor",
    "openssh-server",
    "sudo",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "procps",
    "curl",
    "containerd",
    "runc",
    "kubernetes-client",
    "etcd-server",
];

/// Vagrant's own public key, known to everybody: Vagrant puts another in its place when it first comes in.
const KEY: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key\n";

/// Files that make it a box, beside those of the packages; the folder is made as needed.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/fstab", 0o644, "LABEL=sluice-box / ext4 errors=remount-ro 0 1\n"),
    ("etc/hostname", 0o644, "sluice-box\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    (
        "etc/systemd/network/80-first.network",
        0o644,
        "[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\n\n[DHCPv4]\nUseHostname=no\n",
    ),
    // Keys of its own for each machine; none are in the box.
    (
        "etc/systemd/system/ssh.service.d/keys.conf",
        0o644,
        "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n",
    ),
    ("etc/ssh/sshd_config.d/box.conf", 0o644, "UseDNS no\n"),
    ("etc/sudoers.d/vagrant", 0o440, "vagrant ALL=(ALL) NOPASSWD: ALL\n"),
    ("home/vagrant/.ssh/authorized_keys", 0o600, KEY),
];

/// What is done inside at the end.
const SETTLE: &[&[&str]] = &[
    &["useradd", "--shell", "/bin/bash", "--home-dir", "/home/vagrant", "--no-create-home", "vagrant"],
    &["chown", "-R", "vagrant:vagrant", "/home/vagrant"],
    &["chmod", "0700", "/home/vagrant/.ssh"],
    &["systemctl", "enable", "systemd-networkd.service", "systemd-resolved.service", "ssh.service"],
    // Only the machines whose role it is run one.
    &["systemctl", "disable", "etcd.service"],
    &["apt-get", "clean"],
];

/// What belongs to one machine and not to a box.
const OWN: &[&str] = &["usr/sbin/policy-rc.d", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed"];

pub(super) fn prepare(root: &Path) -> Result<()> {
    sh::step("making a Debian 12 (debootstrap)");
    let (_, mirror) = dist::source()?;
    let mut debootstrap = sh::command(sh::which("debootstrap").context("debootstrap is not installed")?);
    sh::output(debootstrap.args(["--variant=minbase", SUITE]).arg(root).arg(&mirror))?;
    sh::step("installing the packages of a lab's machines");
    let sources = sources(&dist::targets()?);
    if !sources.is_empty() {
        file(root, "etc/apt/sources.list", 0o644, &sources)?;
    }
    // Nothing is started while it is made.
    file(root, "usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n")?;
    inside(root, &["apt-get", "-q", "update"])?;
    inside(root, &[&["apt-get", "-q", "-y", "--no-install-recommends", "install"], PACKAGES].concat())?;
    for (path, mode, content) in FILES {
        file(root, path, *mode, content)?;
    }
    for words in SETTLE {
        inside(root, words)?;
    }
    for path in OWN {
        // Which of them there are is for the packages to say.
        let _ = fs::remove_file(root.join(path));
    }
    for entry in fs::read_dir(root.join("etc/ssh"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    // Empty: made at the first boot.
    fs::write(root.join("etc/machine-id"), "").map_err(Into::into)
}

/// The suites of the box, from where this machine has them: security updates, too, if it is of the same release.
fn sources(targets: &str) -> String {
    let mut lines: Vec<String> = targets
        .lines()
        .filter_map(|line| line.split_once(" main "))
        .filter(|(suite, _)| suite.strip_prefix(SUITE).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
        .map(|(suite, site)| format!("deb {site} {suite} main\n"))
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

/// Runs a command in the tree, with a `/proc` and process numbers of its own, so that nothing stays behind.
pub(super) fn inside(root: &Path, words: &[&str]) -> Result<String> {
    let mut command = sh::command(sh::which("unshare").context("unshare is not installed")?);
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]).arg("--root").arg(root).args(words);
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    sh::output(command.env("PATH", path).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8"))
}

fn file(root: &Path, path: &str, mode: u32, content: &str) -> Result<()> {
    let to = root.join(path);
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&to, content).with_context(|| format!("cannot write {}", to.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(mode)).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_updates_are_in_the_box_and_other_releases_are_not() {
        let targets = "bookworm main http://a/debian\nbookworm main http://a/debian\nbookworm-security main http://a/sec\n\
                       bookworm contrib http://a/debian\ntrixie main http://a/debian\n";
        assert_eq!(sources(targets), "deb http://a/debian bookworm main\ndeb http://a/sec bookworm-security main\n");
    }

    #[test]
    fn the_box_has_what_sluices_package_and_the_labs_need() {
        let control = fs::read_to_string(sh::root().join("packaging/debian/control")).unwrap();
        let script = fs::read_to_string(sh::root().join("vagrant/provision.sh")).unwrap();
        let needed = ["containerd", "runc", "kubernetes-client"];
        assert!(needed.iter().all(|package| control.contains(package) && PACKAGES.contains(package)));
        let used = script.lines().filter_map(|line| line.trim().split_once("needed=\"")).map(|(_, rest)| rest);
        let used: Vec<_> = used.flat_map(|rest| rest.trim_end_matches('"').split_whitespace()).collect();
        assert!(used.contains(&"etcd-server"), "{used:?}");
        for package in used.into_iter().filter(|word| *word != "$needed") {
            assert!(PACKAGES.contains(&package), "provision.sh would download {package}");
        }
    }
}
