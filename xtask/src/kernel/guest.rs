//! What runs on the second kernel: an initramfs with busybox, `ip`, `tc`, the modules that the tests need, the test programs
//! with their libraries, and a script that runs them one after the other.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{cpio::Archive, package::Kernel};
use crate::image::BUSYBOX;
use crate::sh;

/// What the script says when a test program has ended; its name and status follow.
pub(super) const ENDED: &str = "@@ ended ";

/// Modules that the tests need, without those that they need themselves.
const MODULES: &[&str] = &[
    "veth",
    "cls_bpf",
    "sch_ingress",
    "bonding",
    "8021q",
    // What sctp asks for by itself, and nobody in here would bring.
    "crc32c_generic",
    "sctp",
    "sch_fq",
    "vxlan",
    "dummy",
    "ipip",
    "sch_tbf",
    "udp_diag",
    "sch_netem",
    "bridge",
];

/// The package whose library's own tests are run under this name; all others are tests of `sluice-dataplane`.
const LIBRARY: (&str, &str) = ("sluice_e2e", "sluice-e2e");

/// Programs that the tests run.
const PROGRAMS: &[&str] = &["ip", "tc"];

/// Where the test programs are.
const TESTS: &str = "/tests";

/// Builds the test programs and puts all together.
pub(super) fn build(kernel: &Kernel, tests: &[(&str, &[&str])]) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in ["/proc", "/sys", "/dev", "/run", "/tmp", "/etc"] {
        archive.folder(folder);
    }
    archive.file("/bin/busybox", &fs::read(BUSYBOX).context(BUSYBOX)?);
    for applet in ["sh", "mount", "modprobe", "poweroff", "cat"] {
        archive.link(&format!("/bin/{applet}"), "busybox");
    }
    for name in PROGRAMS {
        let program = sh::which(name).with_context(|| format!("{name} is missing"))?;
        archive.file(&format!("/bin/{name}"), &fs::read(&program)?);
        libraries(&mut archive, &program)?;
    }
    for (name, built) in programs(tests)? {
        let stripped = sh::target().join("kernel").join(format!("{name}.stripped"));
        sh::output(sh::command("strip").arg("-o").arg(&stripped).arg(&built))?;
        archive.file(&format!("{TESTS}/{name}"), &fs::read(&stripped)?);
        libraries(&mut archive, &built)?;
    }
    modules(&mut archive, kernel)?;
    archive.file("/init", script(tests).as_bytes());
    let path = sh::target().join("kernel/initramfs");
    fs::write(&path, archive.finish()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Compiles the test programs: name and path.
fn programs(tests: &[(&str, &[&str])]) -> Result<Vec<(String, PathBuf)>> {
    let names = || tests.iter().map(|(name, _)| *name);
    let mut words = vec!["--package", "sluice-dataplane"];
    words.extend(names().filter(|name| *name != LIBRARY.0).flat_map(|name| ["--test", name]));
    let mut all = compile(&words)?;
    if names().any(|name| name == LIBRARY.0) {
        all.extend(compile(&["--package", LIBRARY.1, "--lib"])?);
    }
    let one = |name: &str| all.iter().find(|(built, _)| built == name).cloned();
    names().map(|name| one(name).with_context(|| format!("cargo built no test program {name}"))).collect()
}

/// What cargo makes of these words: name and path of each test program.
fn compile(words: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--no-run", "--quiet", "--message-format=json"]).args(words);
    let said = sh::output(cargo.stderr(std::process::Stdio::inherit()))?;
    let built = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(message["executable"].as_str()?)))
    };
    Ok(said.lines().filter_map(built).collect())
}

/// Adds the libraries that a program is linked to, where it looks for them.
fn libraries(archive: &mut Archive, program: &Path) -> Result<()> {
    let said = sh::output(sh::command("ldd").arg(program))?;
    for path in said.split_whitespace().filter(|word| word.starts_with('/')) {
        archive.file(path, &fs::read(path).with_context(|| path.to_owned())?);
    }
    Ok(())
}

/// Adds the modules and those that they need.
fn modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let known = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    let folder = format!("/lib/modules/{}", kernel.version);
    let mut files = BTreeSet::new();
    for name in MODULES {
        let (file, needs) = known
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| Path::new(file).file_name().is_some_and(|found| found == format!("{name}.ko").as_str()))
            .with_context(|| format!("Linux {} has no module {name}", kernel.version))?;
        files.insert(file);
        files.extend(needs.split_whitespace());
    }
    for file in files {
        archive.file(&format!("{folder}/{file}"), &fs::read(kernel.modules.join(file))?);
    }
    for index in ["modules.dep", "modules.alias", "modules.symbols"] {
        archive.file(&format!("{folder}/{index}"), &fs::read(kernel.modules.join(index))?);
    }
    Ok(())
}

fn script(tests: &[(&str, &[&str])]) -> String {
    let mut lines = vec![
        "#!/bin/sh".to_owned(),
        "export PATH=/bin HOME=/tmp RUST_BACKTRACE=1".to_owned(),
        "mount -t proc proc /proc".to_owned(),
        "mount -t sysfs sys /sys".to_owned(),
        "mount -t devtmpfs dev /dev".to_owned(),
        "mount -t tmpfs run /run".to_owned(),
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup".to_owned(),
        "mount -t bpf bpf /sys/fs/bpf".to_owned(),
        "ip link set lo up".to_owned(),
    ];
    lines.extend(MODULES.iter().map(|name| format!("modprobe {name}")));
    for (name, arguments) in tests {
        lines.push(format!("{TESTS}/{name} --test-threads 1 {}", arguments.join(" ")));
        lines.push(format!("echo \"{ENDED}{name} $?\""));
    }
    lines.push("poweroff -f".to_owned());
    lines.join("\n") + "\n"
}
