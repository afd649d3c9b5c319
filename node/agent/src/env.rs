//! A container's environment, command and arguments: `envFrom`, `env` with all its sources, service links and
//! `$(VAR)` expansion, in upstream's order and with its error texts. Pure: the objects referred to come in through
//! [`Objects`].

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fields::{self, Facts};
use crate::model::{Container, EnvSource, KeyRef, Pod};

/// The keys of a ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyData {
    /// `data`.
    pub data: BTreeMap<String, Vec<u8>>,
    /// `binaryData` of a ConfigMap.
    pub binary: BTreeMap<String, Vec<u8>>,
}

/// Where ConfigMaps and Secrets of the pod's namespace come from.
pub trait Objects {
    fn config_map(&self, name: &str) -> Option<Arc<KeyData>>;
    fn secret(&self, name: &str) -> Option<Arc<KeyData>>;
}

/// A Service as environment variables need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceLink {
    pub name: String,
    pub namespace: String,
    pub cluster_ip: String,
    /// Name, number, protocol.
    pub ports: Vec<(String, u16, String)>,
}

/// The cluster's Services by namespace and name.
#[derive(Clone, Debug, Default)]
pub struct ServiceLinks(BTreeMap<(String, String), ServiceLink>);

impl ServiceLinks {
    /// Adds a Service, or puts it in the place of what it was.
    pub fn put(&mut self, service: ServiceLink) {
        self.0.insert((service.namespace.clone(), service.name.clone()), service);
    }

    /// Forgets a Service.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        self.0.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// What pods of a namespace may get variables for: its own Services and `default/kubernetes`, in order.
    pub fn of(&self, namespace: &str) -> Vec<ServiceLink> {
        let master = ("default".to_owned(), "kubernetes".to_owned());
        let first = (namespace.to_owned(), String::new());
        let own = self.0.range(first..).map(|(_, service)| service).take_while(|s| s.namespace == namespace);
        let master = self.0.get(&master).filter(|_| namespace != "default");
        let mut all: Vec<ServiceLink> = own.chain(master).cloned().collect();
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all
    }
}

/// The container's own environment (the image's comes before it), or the message of a
/// `CreateContainerConfigError`.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    objects: &dyn Objects,
    services: &[ServiceLink],
) -> Result<Vec<(String, String)>, String> {
    let links = service_variables(pod, services);
    let mut env = Ordered::default();
    for from in &container.env_from {
        let (data, optional, missing) = if let Some(r) = &from.config_map_ref {
            (objects.config_map(&r.name), r.optional, format!("configmap \"{}\" not found", r.name))
        } else if let Some(r) = &from.secret_ref {
            (objects.secret(&r.name), r.optional, format!("secret \"{}\" not found", r.name))
        } else {
            continue;
        };
        match data {
            Some(data) => {
                for (key, value) in &data.data {
                    let name = format!("{}{key}", from.prefix);
                    if is_variable_name(&name) {
                        env.set(name, String::from_utf8_lossy(value).into_owned());
                    }
                }
            }
            None if optional => {}
            None => return Err(missing),
        }
    }
    for var in &container.env {
        let value = match &var.value_from {
            None => {
                let known = |name: &str| env.get(name).or_else(|| links.get(name).map(String::as_str));
                Some(expand(&var.value, known))
            }
            Some(source) => from_source(pod, container, facts, objects, source)?,
        };
        if let Some(value) = value {
            env.set(var.name.clone(), value);
        }
    }
    for (name, value) in links {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.list)
}

/// `$(NAME)` replaced by what `known` says, `$$` by `$`; unknown names stay as they are.
pub fn expand<'a>(text: &str, known: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(inner) = after.strip_prefix('(')
            && let Some(end) = inner.find(')')
        {
            match known(&inner[..end]) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[at..at + 3 + end]),
            }
            rest = &inner[end + 1..];
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Command or arguments with variables expanded.
pub fn expand_all(words: &[String], env: &[(String, String)]) -> Vec<String> {
    let known = |name: &str| env.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    words.iter().map(|w| expand(w, known)).collect()
}

/// Names of the ConfigMaps and Secrets the container's environment refers to: `(config maps, secrets)`.
pub fn references(container: &Container) -> (Vec<&str>, Vec<&str>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in &container.env_from {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.as_str()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.as_str()));
    }
    for source in container.env.iter().filter_map(|v| v.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.as_str()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.as_str()));
    }
    (maps, secrets)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    objects: &dyn Objects,
    source: &EnvSource,
) -> Result<Option<String>, String> {
    if let Some(r) = &source.field_ref {
        return fields::field(pod, facts, &r.field_path).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        let of = if r.container_name.is_empty() { Some(container) } else { pod.container(&r.container_name) };
        let of = of.ok_or_else(|| format!("container {} not found", r.container_name))?;
        return fields::resource(of, facts, r).map(Some);
    }
    if let Some(r) = &source.config_map_key_ref {
        let missing = || format!("configmap \"{}\" not found", r.name);
        return key(r, objects.config_map(&r.name), missing, "ConfigMap", pod.namespace());
    }
    if let Some(r) = &source.secret_key_ref {
        let missing = || format!("secret \"{}\" not found", r.name);
        return key(r, objects.secret(&r.name), missing, "Secret", pod.namespace());
    }
    if source.file_key_ref.is_some() {
        return Err("fileKeyRef is not supported by this node yet".to_owned());
    }
    Ok(Some(String::new()))
}

fn key(
    r: &KeyRef,
    data: Option<Arc<KeyData>>,
    missing: impl Fn() -> String,
    kind: &str,
    namespace: &str,
) -> Result<Option<String>, String> {
    match data {
        Some(data) => match data.data.get(&r.key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if r.optional => Ok(None),
            None => Err(format!("couldn't find key {} in {kind} {namespace}/{}", r.key, r.name)),
        },
        None if r.optional => Ok(None),
        None => Err(missing()),
    }
}

/// Any printable ASCII but `=` (upstream since 1.32).
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// Variables for the Services of the namespace (unless `enableServiceLinks: false`) and always for
/// `default/kubernetes`.
fn service_variables(pod: &Pod, services: &[ServiceLink]) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let all = pod.spec.enable_service_links.unwrap_or(true);
    for s in services {
        let master = s.namespace == "default" && s.name == "kubernetes";
        let wanted = master || (all && s.namespace == pod.namespace());
        if !wanted || s.cluster_ip.is_empty() || s.cluster_ip == "None" || s.ports.is_empty() {
            continue;
        }
        let shadowed = master
            && all
            && services.iter().any(|o| o.name == s.name && o.namespace == pod.namespace() && o.namespace != "default");
        if !shadowed {
            one_service(s, &mut out);
        }
    }
    out
}

fn one_service(s: &ServiceLink, out: &mut BTreeMap<String, String>) {
    let upper = |text: &str| text.replace('-', "_").to_uppercase();
    let name = upper(&s.name);
    let host = if s.cluster_ip.contains(':') { format!("[{}]", s.cluster_ip) } else { s.cluster_ip.clone() };
    out.insert(format!("{name}_SERVICE_HOST"), s.cluster_ip.clone());
    for (i, (port_name, port, protocol)) in s.ports.iter().enumerate() {
        let url = format!("{}://{host}:{port}", protocol.to_lowercase());
        if i == 0 {
            out.insert(format!("{name}_SERVICE_PORT"), port.to_string());
            out.insert(format!("{name}_PORT"), url.clone());
        }
        if !port_name.is_empty() {
            out.insert(format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.to_string());
        }
        let prefix = format!("{name}_PORT_{port}_{}", protocol.to_uppercase());
        out.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        out.insert(format!("{prefix}_PORT"), port.to_string());
        out.insert(format!("{prefix}_ADDR"), s.cluster_ip.clone());
        out.insert(prefix, url);
    }
}

/// A map that keeps the order of insertion; setting a name again keeps its place.
#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Ordered {
    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|i| self.list[*i].1.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(i) => self.list[*i].1 = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    struct Fixed;

    impl Objects for Fixed {
        fn config_map(&self, name: &str) -> Option<Arc<KeyData>> {
            let data = BTreeMap::from([("k".into(), b"v".to_vec()), ("other.key".into(), b"o".to_vec())]);
            (name == "cm").then(|| Arc::new(KeyData { data, ..KeyData::default() }))
        }
        fn secret(&self, name: &str) -> Option<Arc<KeyData>> {
            let data = BTreeMap::from([("pw".into(), b"s3".to_vec())]);
            (name == "sec").then(|| Arc::new(KeyData { data, ..KeyData::default() }))
        }
    }

    fn check(container: serde_json::Value, expected: Result<&[(&str, &str)], &str>) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [container]},
        }))
        .unwrap();
        let actual = resolve(&pod, &pod.spec.containers[0], &Facts::default(), &Fixed, &[]);
        let expected = expected
            .map(|l| l.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>())
            .map_err(str::to_owned);
        assert_eq!(actual, expected, "{container}");
    }

    #[test]
    fn sources_and_errors() {
        let from = |v: serde_json::Value| json!({"env": [{"name": "A", "valueFrom": v}]});
        check(json!({"env": [{"name": "A", "value": "1"}]}), Ok(&[("A", "1")]));
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "sec"}}]}),
            Ok(&[("P_k", "v"), ("P_other.key", "o"), ("pw", "s3")]),
        );
        check(json!({"envFrom": [{"configMapRef": {"name": "x"}}]}), Err("configmap \"x\" not found"));
        check(json!({"envFrom": [{"configMapRef": {"name": "x", "optional": true}}]}), Ok(&[]));
        check(json!({"envFrom": [{"secretRef": {"name": "x"}}]}), Err("secret \"x\" not found"));
        check(from(json!({"configMapKeyRef": {"name": "cm", "key": "k"}})), Ok(&[("A", "v")]));
        check(
            from(json!({"configMapKeyRef": {"name": "cm", "key": "no"}})),
            Err("couldn't find key no in ConfigMap ns/cm"),
        );
        check(from(json!({"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}})), Ok(&[]));
        check(
            from(json!({"secretKeyRef": {"name": "sec", "key": "no"}})),
            Err("couldn't find key no in Secret ns/sec"),
        );
        check(from(json!({"secretKeyRef": {"name": "x", "key": "k"}})), Err("secret \"x\" not found"));
        check(from(json!({"fieldRef": {"fieldPath": "metadata.name"}})), Ok(&[("A", "p")]));
        check(
            json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(NO)-$$(A)-$"},
                {"name": "A", "value": "2"}]}),
            Ok(&[("A", "2"), ("B", "1-$(NO)-$(A)-$")]),
        );
    }

    #[test]
    fn expansion() {
        for (text, expected) in [
            ("$(X)", "x"),
            ("a$(X)b", "axb"),
            ("$$(X)", "$(X)"),
            ("$$$(X)", "$x"),
            ("$(Y)", "$(Y)"),
            ("$(X", "$(X"),
            ("$X", "$X"),
            ("100%$", "100%$"),
            ("$$", "$"),
        ] {
            assert_eq!(expand(text, |n| (n == "X").then_some("x")), expected, "{text}");
        }
    }

    #[test]
    fn service_links() {
        let link = |namespace: &str, name: &str| ServiceLink {
            name: name.into(),
            namespace: namespace.into(),
            cluster_ip: "10.96.0.1".into(),
            ports: vec![("https".into(), 443, "TCP".into())],
        };
        let mut links = ServiceLinks::default();
        for (namespace, name) in [("other", "no"), ("ns", "my-db"), ("ns", "gone"), ("default", "kubernetes")] {
            links.put(link(namespace, name));
        }
        links.remove("ns", "gone");
        assert_eq!(links.of("default"), [link("default", "kubernetes")]);
        let services = links.of("ns");
        assert_eq!(services, [link("default", "kubernetes"), link("ns", "my-db")]);
        assert_eq!(links.of("zoo"), [link("default", "kubernetes")]);
        for (enabled, count) in [(true, 16), (false, 8)] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"namespace": "ns"}, "spec": {"enableServiceLinks": enabled},
            }))
            .unwrap();
            let env = service_variables(&pod, &services);
            assert_eq!(env.len(), count, "{env:?}");
            assert_eq!(env["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
            assert_eq!(env["KUBERNETES_PORT_443_TCP"], "tcp://10.96.0.1:443");
            assert_eq!(env["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
            assert_eq!(env.contains_key("MY_DB_PORT_443_TCP_ADDR"), enabled);
        }
    }
}
