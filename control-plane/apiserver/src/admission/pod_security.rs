//! PodSecurity: the Pod Security Standards, switched on by labels of a namespace
//! (`pod-security.kubernetes.io/enforce|warn`). Enforcing refuses pods; warning speaks of pods and
//! of the templates of workloads. Checks and words are upstream's (`pod-security-admission/policy`)
//! in their newest version; older versions asked for by label are judged by the newest.

use serde_json::Value;
use sluice_api::status::Status;

use super::{forbid, list, text};
use crate::{
    auth::view::View,
    context::{Admit, Operation},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Baseline,
    Restricted,
}

/// What is wrong and why, as `privileged (container "a" must not set ...)`.
type Violation = (&'static str, String);

const PREFIX: &str = "pod-security.kubernetes.io/";

/// Refuses what the namespace's `enforce` forbids; returns what its `warn` has to say.
pub(super) fn check(view: &dyn View, admit: &Admit<'_>, object: &Value) -> Result<Vec<String>, Status> {
    let a = &admit.attributes;
    let is_pod = a.group.is_empty() && a.resource == "pods";
    let judged = match (is_pod, a.subresource) {
        (true, "") => admit.operation == Operation::Create,
        (true, "ephemeralcontainers") => true,
        (false, "") => true,
        _ => false,
    };
    let Some((metadata, spec)) = pod_of(a.group, a.resource, object).filter(|_| judged) else {
        return Ok(Vec::new());
    };
    let Some(namespace) = view.get("", "namespaces", "", a.namespace) else {
        return Ok(Vec::new());
    };
    let label = |mode: &str| namespace.label(&format!("{PREFIX}{mode}"));
    let found = |mode: &str| -> Option<String> {
        let level = match label(mode)? {
            "baseline" => Level::Baseline,
            "restricted" => Level::Restricted,
            _ => return None,
        };
        let violations = violations(metadata, spec, level);
        let version = label(&format!("{mode}-version")).unwrap_or("latest");
        let said: Vec<String> = violations.into_iter().map(|(what, why)| format!("{what} ({why})")).collect();
        let name = label(mode).unwrap_or_default();
        (!said.is_empty()).then(|| format!("violate{{}} PodSecurity \"{name}:{version}\": {}", said.join(", ")))
    };
    if is_pod && let Some(said) = found("enforce") {
        return Err(forbid(admit, Some(object), said.replacen("{}", "s", 1)));
    }
    let warning = found("warn").map(|said| format!("would {}", said.replacen("{}", "", 1)));
    Ok(warning.into_iter().collect())
}

/// The pod that an object is or makes: its metadata and spec.
fn pod_of<'a>(group: &str, resource: &str, object: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let template = match (group, resource) {
        ("", "pods") => object,
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        ("", "podtemplates") => &object["template"],
        _ => return None,
    };
    (!template["spec"].is_null()).then_some((&template["metadata"], &template["spec"]))
}

fn violations(metadata: &Value, spec: &Value, level: Level) -> Vec<Violation> {
    let restricted = level == Level::Restricted;
    let mut out: Vec<Option<Violation>> = vec![
        app_armor(metadata, spec),
        if restricted { None } else { capabilities_baseline(spec) },
        host_namespaces(spec),
        if restricted { None } else { host_path(spec) },
        host_ports(spec),
        host_probes(spec),
        bad_containers(spec, "privileged", "must not set securityContext.privileged=true", |c| {
            c["securityContext"]["privileged"] == true
        }),
        proc_mount(spec),
        se_linux(spec),
        if restricted { None } else { seccomp_baseline(spec) },
        sysctls(spec),
        host_process(spec),
    ];
    if restricted && text(&spec["os"], "name") != "windows" {
        out.push(bad_containers(
            spec,
            "allowPrivilegeEscalation != false",
            "must set securityContext.allowPrivilegeEscalation=false",
            |c| c["securityContext"]["allowPrivilegeEscalation"] != false,
        ));
        out.push(capabilities_restricted(spec));
    }
    if restricted {
        out.push(volumes(spec));
        out.push(run_as_non_root(spec));
        out.push(run_as_user(spec));
        out.push(seccomp_restricted(spec));
    }
    out.into_iter().flatten().collect()
}

fn all_containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| list(&spec[kind]))
}

/// `container "a"` or `containers "a", "b"`.
fn named<'a>(what: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<String> = names.into_iter().map(|n| format!("{n:?}")).collect();
    match names.len() {
        0 => None,
        1 => Some(format!("{what} {}", names[0])),
        _ => Some(format!("{what}s {}", names.join(", "))),
    }
}

fn bad_containers(spec: &Value, what: &'static str, rule: &str, bad: impl Fn(&Value) -> bool) -> Option<Violation> {
    let names = all_containers(spec).filter(|c| bad(c)).map(|c| text(c, "name"));
    named("container", names).map(|who| (what, format!("{who} {rule}")))
}

fn host_namespaces(spec: &Value) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| spec[*field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    (!set.is_empty()).then(|| ("host namespaces", set.join(", ")))
}

fn host_path(spec: &Value) -> Option<Violation> {
    let names = list(&spec["volumes"]).iter().filter(|v| !v["hostPath"].is_null()).map(|v| text(v, "name"));
    named("volume", names).map(|who| ("hostPath volumes", who))
}

fn host_ports(spec: &Value) -> Option<Violation> {
    let port = |p: &Value| p["hostPort"].as_u64().filter(|&n| n != 0);
    let using: Vec<&Value> =
        all_containers(spec).filter(|c| list(&c["ports"]).iter().any(|p| port(p).is_some())).collect();
    let mut ports: Vec<String> =
        using.iter().flat_map(|c| list(&c["ports"])).filter_map(port).map(|p| p.to_string()).collect();
    ports.dedup();
    let verb = if using.len() == 1 { "uses" } else { "use" };
    let noun = if ports.len() == 1 { "hostPort" } else { "hostPorts" };
    named("container", using.iter().map(|c| text(c, "name")))
        .map(|who| ("hostPort", format!("{who} {verb} {noun} {}", ports.join(", "))))
}

fn host_probes(spec: &Value) -> Option<Violation> {
    let has_host =
        |handler: &Value| ["httpGet", "tcpSocket"].iter().any(|kind| !text(&handler[*kind], "host").is_empty());
    let bad = |c: &Value| {
        ["livenessProbe", "readinessProbe", "startupProbe"].iter().any(|p| has_host(&c[*p]))
            || ["postStart", "preStop"].iter().any(|h| has_host(&c["lifecycle"][*h]))
    };
    bad_containers(spec, "probe or lifecycle host", "must not set a host of a probe or lifecycle handler", bad)
}

fn capabilities_baseline(spec: &Value) -> Option<Violation> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    added(spec, "non-default capabilities", &ALLOWED)
}

fn added(spec: &Value, what: &'static str, allowed: &[&str]) -> Option<Violation> {
    let extra = |c: &Value| -> Vec<String> {
        list(&c["securityContext"]["capabilities"]["add"])
            .iter()
            .filter_map(Value::as_str)
            .filter(|cap| !allowed.contains(cap))
            .map(|cap| format!("{cap:?}"))
            .collect()
    };
    let mut capabilities: Vec<String> = all_containers(spec).flat_map(extra).collect();
    capabilities.sort();
    capabilities.dedup();
    let rule = format!("must not include {} in securityContext.capabilities.add", capabilities.join(", "));
    bad_containers(spec, what, &rule, |c| !extra(c).is_empty())
}

fn capabilities_restricted(spec: &Value) -> Option<Violation> {
    const WHAT: &str = "unrestricted capabilities";
    let drops_all = |c: &Value| list(&c["securityContext"]["capabilities"]["drop"]).iter().any(|cap| cap == "ALL");
    let rule = "must set securityContext.capabilities.drop=[\"ALL\"]";
    let kept = bad_containers(spec, WHAT, rule, |c| !drops_all(c)).map(|(_, why)| why);
    let added = added(spec, WHAT, &["NET_BIND_SERVICE"]).map(|(_, why)| why);
    let why: Vec<String> = kept.into_iter().chain(added).collect();
    (!why.is_empty()).then(|| (WHAT, why.join("; ")))
}

fn proc_mount(spec: &Value) -> Option<Violation> {
    if spec["hostUsers"] == false {
        return None;
    }
    bad_containers(spec, "procMount", "must not set securityContext.procMount to \"Unmasked\"", |c| {
        !matches!(text(&c["securityContext"], "procMount"), "" | "Default")
    })
}

/// The pod itself and its containers, named as messages do.
fn contexts<'a>(spec: &'a Value, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let pod = bad(&spec["securityContext"]).then(|| "pod".to_owned());
    let names: Vec<&'a str> =
        all_containers(spec).filter(|c| bad(&c["securityContext"])).map(|c| text(c, "name")).collect();
    let who: Vec<String> = pod.into_iter().chain(named("container", names)).collect();
    (!who.is_empty()).then(|| who.join(" and "))
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<Violation> {
    const KEY: &str = "container.apparmor.security.beta.kubernetes.io/";
    let unconfined = |context: &Value| text(&context["appArmorProfile"], "type") == "Unconfined";
    if let Some(who) = contexts(spec, unconfined) {
        return Some((
            "forbidden AppArmor profile",
            format!("{who} must not set AppArmor profile type to \"Unconfined\""),
        ));
    }
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let bad: Vec<String> = annotations
        .filter(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            key.starts_with(KEY) && !(value.is_empty() || value == "runtime/default" || value.starts_with("localhost/"))
        })
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    (!bad.is_empty()).then(|| ("forbidden AppArmor profiles", bad.join(", ")))
}

fn se_linux(spec: &Value) -> Option<Violation> {
    const TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let bad = |context: &Value| {
        let options = &context["seLinuxOptions"];
        !TYPES.contains(&text(options, "type"))
            || !text(options, "user").is_empty()
            || !text(options, "role").is_empty()
    };
    contexts(spec, bad).map(|who| ("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions")))
}

fn seccomp_baseline(spec: &Value) -> Option<Violation> {
    let bad = |context: &Value| text(&context["seccompProfile"], "type") == "Unconfined";
    contexts(spec, bad).map(|who| {
        ("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to \"Unconfined\""))
    })
}

fn seccomp_restricted(spec: &Value) -> Option<Violation> {
    const RULE: &str = "securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    let kind = |context: &Value| text(&context["seccompProfile"], "type").to_owned();
    let good = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let pod = kind(&spec["securityContext"]);
    if !pod.is_empty() && !good(&pod) {
        return Some(("seccompProfile", format!("pod must not set securityContext.seccompProfile.type to {pod:?}")));
    }
    let explicit = bad_containers(spec, "seccompProfile", &format!("must not set {RULE}"), |c| {
        let kind = kind(&c["securityContext"]);
        !kind.is_empty() && !good(&kind)
    });
    if explicit.is_some() || good(&pod) {
        return explicit;
    }
    bad_containers(spec, "seccompProfile", &format!("must set {RULE}"), |c| kind(&c["securityContext"]).is_empty())
        .map(|(what, why)| (what, format!("pod or {why}")))
}

fn sysctls(spec: &Value) -> Option<Violation> {
    const SAFE: [&str; 10] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    ];
    const MEMORY: [&str; 2] = ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"];
    let bad: Vec<&str> = list(&spec["securityContext"]["sysctls"])
        .iter()
        .map(|s| text(s, "name"))
        .filter(|name| !SAFE.contains(name) && !MEMORY.contains(name))
        .collect();
    (!bad.is_empty()).then(|| ("forbidden sysctls", bad.join(", ")))
}

fn host_process(spec: &Value) -> Option<Violation> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    contexts(spec, bad)
        .map(|who| ("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true")))
}

fn volumes(spec: &Value) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "name",
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let kind = |volume: &Value| {
        let fields = volume.as_object()?;
        fields.keys().find(|key| !ALLOWED.contains(&key.as_str())).cloned()
    };
    let bad: Vec<&Value> = list(&spec["volumes"]).iter().filter(|v| kind(v).is_some()).collect();
    let mut kinds: Vec<String> = bad.iter().filter_map(|v| kind(v)).map(|k| format!("{k:?}")).collect();
    kinds.sort();
    kinds.dedup();
    let verb = if bad.len() == 1 { "uses" } else { "use" };
    let noun = if kinds.len() == 1 { "type" } else { "types" };
    named("volume", bad.iter().map(|v| text(v, "name")))
        .map(|who| ("restricted volume types", format!("{who} {verb} restricted volume {noun} {}", kinds.join(", "))))
}

fn run_as_non_root(spec: &Value) -> Option<Violation> {
    const WHAT: &str = "runAsNonRoot != true";
    const FIELD: &str = "securityContext.runAsNonRoot";
    if spec["hostUsers"] == false {
        return None;
    }
    let pod = &spec["securityContext"]["runAsNonRoot"];
    if *pod == false {
        return Some((WHAT, format!("pod must not set {FIELD}=false")));
    }
    let explicit = bad_containers(spec, WHAT, &format!("must not set {FIELD}=false"), |c| {
        c["securityContext"]["runAsNonRoot"] == false
    });
    if explicit.is_some() || *pod == true {
        return explicit;
    }
    bad_containers(spec, WHAT, &format!("must set {FIELD}=true"), |c| c["securityContext"]["runAsNonRoot"].is_null())
        .map(|(what, why)| (what, format!("pod or {why}")))
}

fn run_as_user(spec: &Value) -> Option<Violation> {
    if spec["hostUsers"] == false {
        return None;
    }
    contexts(spec, |context| context["runAsUser"] == 0)
        .map(|who| ("runAsUser=0", format!("{who} must not set runAsUser=0")))
}
