//! The Debian package on a bare Debian: installed, started by the plain command, upgraded under running pods and an open
//! connection, removed, purged; and the image and the tarball beside it.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sluice_e2e::{Bare, output, sample_image, step, target};

const INSTANCE: &str = "sdeb";
/// Other workers' programs on this machine are not this installation's.
const SETTINGS: &str = "instance: sdeb\nsocketHooks: instance\ndnsUpstream: [none]\ncontainerd: own\n";
/// Writes down what the package asks of the service manager.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$@\" >>/systemctl.log\n";
/// The type in the header of a program that is not linked to lie anywhere (`ET_EXEC`).
const ELF_AT_A_FIXED_ADDRESS: [u8; 2] = [2, 0];
const DAEMON: &str = "/usr/bin/sluice up";
const RUNNING: &str = "get pods -l app=echo --sort-by=.metadata.name -o \
    jsonpath={range.items[*]}{.metadata.name}{.status.containerStatuses[0].containerID}{.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";

/// One connection through a Service, on which it asks again and again until it is told to stop.
const TALKER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: sluice.local/echo:latest
      imagePullPolicy: IfNotPresent
      volumeMounts: [{name: state, mountPath: /state}]
      command:
        - sh
        - -c
        - |
          cd /state
          (n=0
          while [ ! -e stop ]; do
            n=$((n+1))
            printf 'GET /%s HTTP/1.1\r\nHost: echo\r\n\r\n' $n
            sleep 0.1
          done
          echo $n >asked
          sleep 1) | nc echo 80 >answers
          touch ended
          sleep 3600
  volumes: [{name: state, emptyDir: {}}]
"#;

/// Every question that was asked on the connection has its answer.
fn flowed(machine: &Bare) -> Result<()> {
    machine.kubectl("exec talker -- touch /state/stop")?;
    while machine.kubectl("exec talker -- ls /state")?.lines().all(|file| file != "ended") {}
    let asked: usize = machine.kubectl("exec talker -- cat /state/asked")?.trim().parse()?;
    let answers = machine.kubectl("exec talker -- cat /state/answers")?;
    let last = answers.lines().rfind(|line| line.starts_with("path ")).unwrap_or_default();
    ensure!(last == format!("path /{asked}"), "of {asked} questions the last answered one is {last:?}");
    ensure!(answers.matches("path /").count() == asked, "answers are missing");
    machine.kubectl("delete pod talker --timeout=60s").map(drop)
}

fn package(version: &str) -> Result<std::path::PathBuf> {
    let file = target().join("dist").join(format!("sluice_{version}_amd64.deb"));
    ensure!(file.exists(), "{} is missing: cargo xtask dist --for-tests", file.display());
    Ok(file)
}

#[test]
fn the_package_is_installed_upgraded_and_purged() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let mut machine = Bare::start("sdeb", INSTANCE)?;
    machine.put(&package("0.0.1")?, "/root/old.deb")?;
    machine.put(&package(version)?, "/root/new.deb")?;
    machine.put(&sample_image(), "/root/echo.tar")?;
    fs::copy("../../xtask/samples/echo.yaml", machine.path("/root/echo.yaml"))?;

    step("what it needs is declared, and apt brings it", || {
        let said = machine.fails("dpkg -i /root/old.deb")?;
        ensure!(said.contains("sluice depends on containerd") && said.contains("sluice depends on runc"), "{said}");
        // Purging what was never set up removes it as well.
        machine.run("dpkg --purge sluice")?;
        machine.run("apt-get -y -q --no-install-recommends install /root/old.deb")?;
        ensure!(machine.run("sluice --help")?.contains("Kubernetes-compatible"));
        for file in [
            "/usr/share/man/man1/sluice-token-create.1.gz",
            "/usr/share/bash-completion/completions/sluice",
            "/usr/lib/systemd/system/sluice-server.service",
            "/usr/lib/systemd/system/sluice-node.service",
        ] {
            ensure!(machine.path(file).exists(), "{file} is missing");
        }
        // Loggers share what they would each write anew otherwise.
        let program = fs::read(machine.path("/usr/bin/sluice"))?;
        ensure!(program[16..18] == ELF_AT_A_FIXED_ADDRESS, "type {:?}", &program[16..18]);
        Ok(())
    })?;
    fs::write(machine.path("/etc/sluice/sluice.yaml"), SETTINGS)?;

    eprintln!("step: the plain command gives a working cluster");
    machine.daemon(DAEMON)?;
    machine.run("sluice image import /root/echo.tar")?;
    let manifest = machine.path("/root/echo.yaml");
    machine.kubectl("wait --for=condition=Ready node --all --timeout=90s")?;
    machine.kubectl(&format!("apply -f {}", manifest.display()))?;
    machine.kubectl("rollout status deployment/echo --timeout=120s")?;
    machine.kubectl("exec deployment/echo -- /echo get http://echo/ --distinct 3")?;
    let before = machine.kubectl(RUNNING)?;
    ensure!(before.lines().count() == 3, "{before}");
    fs::write(machine.path("/root/talker.yaml"), TALKER)?;
    machine.kubectl(&format!("apply -f {}", machine.path("/root/talker.yaml").display()))?;
    machine.kubectl("wait --for=condition=Ready pod/talker --timeout=60s")?;

    step("an upgrade restarts the services that run, and keeps the settings", || {
        fs::create_dir_all(machine.path("/run/systemd/system"))?;
        fs::write(machine.path("/usr/bin/systemctl"), SYSTEMCTL)?;
        machine.run("chmod +x /usr/bin/systemctl")?;
        machine.run("dpkg -i /root/new.deb")?;
        let asked = fs::read_to_string(machine.path("/systemctl.log"))?;
        let expected = "daemon-reload\ntry-restart sluice.service sluice-server.service sluice-node.service\n";
        ensure!(asked == expected, "{asked}");
        ensure!(machine.run("dpkg-query -W -f ${Version} sluice")? == version);
        ensure!(fs::read_to_string(machine.path("/etc/sluice/sluice.yaml"))? == SETTINGS);
        machine.kubectl("exec deployment/echo -- /echo get http://echo/ --distinct 3").map(drop)
    })?;

    eprintln!("step: the next version finds the pods of the one before");
    machine.end(Signal::SIGTERM)?;
    machine.daemon(DAEMON)?;
    machine.kubectl("wait --for=condition=Ready node --all --timeout=90s")?;
    ensure!(machine.kubectl(RUNNING)? == before, "pods were started again");
    step("a connection through a Service was open all the time", || flowed(&machine))?;
    machine.kubectl("exec deployment/echo -- /echo get http://echo/ --distinct 3")?;
    machine.kubectl("rollout restart deployment/echo")?;
    machine.kubectl("rollout status deployment/echo --timeout=120s")?;

    step("removing it stops the services, and leaves pods and data", || {
        machine.run("dpkg --remove sluice")?;
        ensure!(!machine.path("/usr/bin/sluice").exists());
        ensure!(machine.path("/var/lib/sluice/store/store.redb").exists(), "the store is gone");
        ensure!(machine.contained() >= 3, "pods were stopped");
        let asked = fs::read_to_string(machine.path("/systemctl.log"))?;
        ensure!(asked.contains("disable --now sluice.service"), "{asked}");
        Ok(())
    })?;

    step("purging it removes everything", || {
        machine.run("dpkg --purge sluice")?;
        for dir in ["/var/lib/sluice", "/var/lib/sluice-purge", "/run/sluice", "/etc/sluice", "/usr/share/doc/sluice"] {
            ensure!(!machine.path(dir).exists(), "{dir} is left");
        }
        ensure!(machine.contained() == 0, "processes of pods are left");
        let said = machine.run("dpkg -l")?;
        ensure!(!said.contains("sluice"), "{said}");
        Ok(())
    })?;
    machine.ended()
}

#[test]
fn the_tarball_and_the_image_hold_a_program_that_runs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let dist = target().join("dist");
    let name = format!("sluice-{version}-{arch}");
    output(Command::new("tar").arg("-xf").arg(dist.join(format!("{name}.tar.gz"))).current_dir(dir.path()))?;
    let said = output(Command::new(dir.path().join(&name).join("usr/bin/sluice")).arg("--version"))?;
    ensure!(said.trim() == format!("sluice {version}"), "{said}");

    output(Command::new("tar").arg("-xf").arg(dist.join(format!("{name}.oci.tar"))).current_dir(dir.path()))?;
    let json = |path: &str| -> Result<serde_json::Value> {
        let text = fs::read(dir.path().join(path)).with_context(|| format!("cannot read {path}"))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let blob = |descriptor: &serde_json::Value| {
        format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
    };
    let manifest = json(&blob(&json("index.json")?["manifests"][0]))?;
    ensure!(json(&blob(&manifest["config"]))?["config"]["Entrypoint"][0] == "/usr/bin/sluice");
    for layer in manifest["layers"].as_array().context("no layers")? {
        let sum = output(Command::new("sha256sum").arg(dir.path().join(blob(layer))))?;
        ensure!(blob(layer).ends_with(sum.split_whitespace().next().unwrap_or("?")), "{sum}");
        let root = dir.path().join("root");
        fs::create_dir_all(&root)?;
        output(Command::new("tar").arg("-xf").arg(dir.path().join(blob(layer))).arg("-C").arg(&root))?;
    }
    let mut inside = Command::new("chroot");
    let said = output(
        inside
            .arg(dir.path().join("root"))
            .args(["/usr/bin/sluice", "--version"])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    )?;
    ensure!(said.trim() == format!("sluice {version}"), "{said}");
    Ok(())
}
