//! The data plane on a second kernel: Debian 12's 6.1, which many nodes run and which has what the kernel at hand may lack
//! (bonds, VLANs, SCTP sockets, fq, netem). Its package is unpacked, not installed, and booted under QEMU with an initramfs
//! that carries the tests of `sluice-dataplane`, those of the labs' weather, and little else. The tests' words come over the
//! serial console; silence, a test that did not run and a kernel's warning are failures like any other.

mod cpio;
mod guest;
mod package;

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{ebpf, setup, sh};

/// Test programs that run in the guest, and how: what the kernel has a say in, and of those on real packets one for each path.
/// Under emulation each test takes ten seconds and more.
const TESTS: &[(&str, &[&str])] = &[
    (
        "verdicts",
        &["agree", "the_verifier", "direct_server_return_in_the_kernel", "masquerade_in_the_kernel", "--nocapture"],
    ),
    (
        "sockets",
        &[
            "connect_reaches_every_backend",
            "datagrams_come_back",
            "a_socket_follows_its_service",
            "services_work_while_no_daemon_runs",
            "no_connection_goes_astray",
            "a_namespace_keeps_its_backend",
        ],
    ),
    (
        "traffic",
        &[
            "pods_reach_services_by_packet",
            "pods_leave_with_the_nodes_address",
            "a_node_port_leads_to_pods_of_another_node",
            "the_same_through_a_tunnel",
            "connections_live_through_a_restart",
            "node_ports_answer_on_links_that_come_later",
        ],
    ),
    ("direct", &["answers_go_straight_to_the_client", "a_datagram_that_is_too_long", "a_shorter_link"]),
    ("devices", &["--include-ignored"]),
    ("own", &["--include-ignored", "associations_of_the_node_reach_services"]),
    ("own_verdicts", &[]),
    ("neighbours", &[]),
    (
        "outward",
        &[
            "pods_of_two_nodes_reach_each_other",
            "what_leaves_and_enters",
            "a_service_elsewhere",
            "a_limited_pods_packets_wait",
        ],
    ),
    ("pace", &[]),
    ("datagrams", &[]),
    ("lost", &[]),
    ("stream", &["what_the_kernel_drops", "what_is_lost_in_a_pod"]),
    ("metrics", &[]),
    ("probes", &[]),
    ("policy_verdicts", &["--nocapture"]),
    ("policies", &["a_change_holds_for_open_connections"]),
    ("explain", &["policies_and_pods_are_called_by_their_names"]),
    ("sluice_e2e", &["--ignored", "weather"]),
];

/// Longest that the guest may be silent, under emulation on a busy machine: every test says when it begins and ends.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

pub(crate) fn run() -> Result<()> {
    sh::require_root("cargo xtask kernel")?;
    setup::ensure(setup::Purpose::Everything)?;
    ebpf::build()?;
    sh::step("unpacking the second kernel");
    let kernel = package::unpacked()?;
    sh::step("building what runs on it");
    let initramfs = guest::build(&kernel, TESTS)?;
    sh::step(&format!("booting Linux {} under QEMU", kernel.version));
    let begun = Instant::now();
    let words = boot(&kernel, &initramfs)?;
    judge(&words, TESTS.iter().map(|(name, _)| *name))?;
    println!("Linux {}: all passed after {:.0} s", kernel.version, begun.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the guest to its end; its console is passed on as it comes.
fn boot(kernel: &package::Kernel, initramfs: &std::path::Path) -> Result<Vec<String>> {
    let mut command = sh::command("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]);
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-nic", "none"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.args(["-append", "console=ttyS0 quiet panic=-1 oops=panic"]);
    let mut guest =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start qemu-system-x86_64")?;
    let console = guest.stdout.take().context("QEMU has a console")?;
    let (send, lines) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut words = Vec::new();
    let outcome = loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                println!("  {line}");
                words.push(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(words),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Err(anyhow::anyhow!("the second kernel was silent for {} s", PATIENCE.as_secs()));
            }
        }
    };
    if outcome.is_err() {
        guest.kill().context("end QEMU")?;
    }
    guest.wait().context("wait for QEMU")?;
    outcome
}

/// Fails unless every test program said that it passed and the guest came to its end.
fn judge<'a>(words: &[String], tests: impl Iterator<Item = &'a str>) -> Result<()> {
    for test in tests {
        let said = format!("{}{test} ", guest::ENDED);
        let Some(rest) = words.iter().find_map(|line| line.strip_prefix(&said)) else {
            bail!("the test program {test} did not come to its end on the second kernel");
        };
        if rest != "0" {
            bail!("the test program {test} failed on the second kernel (status {rest}): see its words above");
        }
    }
    if let Some(line) = words.iter().find(|line| line.contains("modprobe: can't")) {
        bail!("a module of the second kernel is missing: {line}");
    }
    if let Some(line) = words.iter().find(|line| line.contains("BUG:") || line.contains("WARNING: CPU")) {
        bail!("the second kernel complained: {line}");
    }
    // A filter that names no test any more would pass.
    if let Some(line) = words.iter().find(|line| line.contains("test result: ok. 0 passed")) {
        bail!("a test program ran none of its tests on the second kernel: {line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_failure_and_complaints_are_told() {
        let check = |words: &[&str]| {
            judge(&words.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), ["a", "b"].into_iter())
        };
        let (a, b) = (format!("{}a 0", guest::ENDED), format!("{}b 0", guest::ENDED));
        assert!(check(&[&a, "test x ... ok", &b]).is_ok());
        assert!(check(&[&a]).unwrap_err().to_string().contains("b did not"));
        assert!(check(&[&a, &format!("{}b 101", guest::ENDED)]).unwrap_err().to_string().contains("101"));
        assert!(check(&[&a, &b, "[ 1.0] BUG: unable to handle"]).is_err());
        assert!(check(&["modprobe: can't load module x (x.ko): unknown symbol", &a, &b]).is_err());
        assert!(check(&[&a, "test result: ok. 0 passed; 0 failed", &b]).is_err());
    }
}
