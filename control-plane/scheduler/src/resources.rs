//! Amounts of cpu, memory, ephemeral storage and extended resources, and how a pod's effective request is computed.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Request assumed for scoring when a container asks for no cpu (upstream's DefaultMilliCPURequest).
const DEFAULT_MILLI_CPU: i64 = 100;
/// Request assumed for scoring when a container asks for no memory (upstream's DefaultMemoryRequest).
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of the resources a scheduler looks at. Cpu in thousandths of a core, the rest in units or bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of local ephemeral storage.
    pub ephemeral: i64,
    /// Everything else (`example.com/gpu`, `hugepages-2Mi`), sorted by name.
    pub extended: Vec<(Box<str>, i64)>,
}

impl Resources {
    /// Reads a `requests`, `allocatable` or `overhead` map; the pseudo resource `pods` is left out.
    pub fn parse(map: &BTreeMap<String, Quantity>) -> Self {
        let mut out = Self::default();
        for (name, amount) in map {
            match name.as_str() {
                "cpu" => out.milli_cpu = milli(amount),
                "memory" => out.memory = value(amount),
                "ephemeral-storage" => out.ephemeral = value(amount),
                "pods" => {}
                other => out.extended.push((other.into(), value(amount))),
            }
        }
        out
    }

    /// The amount of an extended resource, 0 when absent.
    pub fn extended(&self, name: &str) -> i64 {
        self.extended.binary_search_by(|(n, _)| (**n).cmp(name)).map_or(0, |i| self.extended[i].1)
    }

    /// Adds each amount of `other`.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a + b);
    }

    /// Takes each amount of `other` away.
    pub fn sub(&mut self, other: &Self) {
        self.combine(other, |a, b| a - b);
    }

    /// Raises each amount to at least that of `other`.
    pub fn max(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    /// True when nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0 && self.memory == 0 && self.ephemeral == 0 && self.extended.iter().all(|(_, n)| *n == 0)
    }

    fn combine(&mut self, other: &Self, f: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, other.milli_cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral = f(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.extended {
            match self.extended.binary_search_by(|(n, _)| n.cmp(name)) {
                Ok(i) => self.extended[i].1 = f(self.extended[i].1, *amount),
                Err(i) => self.extended.insert(i, (name.clone(), f(0, *amount))),
            }
        }
    }
}

/// In whole units, rounded up; what is no quantity (the API refuses it) is nothing.
pub(crate) fn value(amount: &Quantity) -> i64 {
    sluice_api::quantity::Quantity::parse(&amount.0).map_or(0, |quantity| quantity.value())
}

fn milli(amount: &Quantity) -> i64 {
    sluice_api::quantity::Quantity::parse(&amount.0).map_or(0, |quantity| quantity.milli())
}

/// What one container asks for.
#[derive(Clone, Debug, Default)]
pub struct ContainerRequest {
    /// Its `resources.requests`.
    pub requests: Resources,
    /// Whether cpu and memory were named at all (an explicit zero counts as named).
    pub names_cpu: bool,
    /// See `names_cpu`.
    pub names_memory: bool,
    /// A native sidecar: an init container with `restartPolicy: Always`.
    pub sidecar: bool,
}

impl ContainerRequest {
    fn with_defaults(&self) -> Resources {
        let mut out = self.requests.clone();
        if !self.names_cpu {
            out.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !self.names_memory {
            out.memory = DEFAULT_MEMORY;
        }
        out
    }
}

/// A pod's effective request, once as asked and once with upstream's defaults for scoring:
/// the sum of containers and sidecars, or the largest init phase if that is more (KEP-753), plus overhead.
/// `pod_level` replaces the amounts it names (KEP-2837).
pub fn effective(
    containers: &[ContainerRequest],
    init: &[ContainerRequest],
    pod_level: Option<&BTreeMap<String, Quantity>>,
    overhead: &Resources,
) -> (Resources, Resources) {
    let total = |amount: &dyn Fn(&ContainerRequest) -> Resources| {
        let mut running = Resources::default();
        for container in containers {
            running.add(&amount(container));
        }
        let mut sidecars = Resources::default();
        let mut peak = Resources::default();
        for container in init {
            let own = amount(container);
            let mut phase = sidecars.clone();
            phase.add(&own);
            if container.sidecar {
                running.add(&own);
                sidecars.add(&own);
            }
            peak.max(&phase);
        }
        running.max(&peak);
        if let Some(named) = pod_level {
            let level = Resources::parse(named);
            if named.contains_key("cpu") {
                running.milli_cpu = level.milli_cpu;
            }
            if named.contains_key("memory") {
                running.memory = level.memory;
            }
        }
        running.add(overhead);
        running
    };
    (total(&|c| c.requests.clone()), total(&ContainerRequest::with_defaults))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(cpu: i64, memory: i64) -> ContainerRequest {
        ContainerRequest {
            requests: Resources { milli_cpu: cpu, memory, ..Default::default() },
            names_cpu: cpu > 0,
            names_memory: memory > 0,
            sidecar: false,
        }
    }

    fn sidecar(cpu: i64) -> ContainerRequest {
        ContainerRequest { sidecar: true, ..asks(cpu, 1) }
    }

    #[test]
    fn effective_requests() {
        let none = Resources::default();
        // (containers, init containers, expected cpu)
        let cases: [(Vec<_>, Vec<_>, i64); 5] = [
            (vec![asks(100, 1), asks(200, 1)], vec![], 300),
            (vec![asks(100, 1)], vec![asks(500, 1), asks(400, 1)], 500),
            (vec![asks(100, 1)], vec![sidecar(50)], 150),
            // The init container after the sidecar runs beside it.
            (vec![asks(100, 1)], vec![sidecar(50), asks(500, 1)], 550),
            // The one before does not.
            (vec![asks(100, 1)], vec![asks(120, 1), sidecar(50)], 150),
        ];
        for (containers, init, cpu) in cases {
            assert_eq!(effective(&containers, &init, None, &none).0.milli_cpu, cpu);
        }
        let (plain, scored) = effective(&[asks(0, 0)], &[], None, &none);
        assert_eq!((plain.milli_cpu, plain.memory), (0, 0));
        assert_eq!((scored.milli_cpu, scored.memory), (DEFAULT_MILLI_CPU, DEFAULT_MEMORY));
    }

    #[test]
    fn add_then_sub_is_nothing() {
        let mut sum = Resources { milli_cpu: 5, extended: vec![("b".into(), 2)], ..Default::default() };
        let other = Resources { memory: 7, extended: vec![("a".into(), 1), ("b".into(), 1)], ..Default::default() };
        sum.add(&other);
        assert_eq!((sum.extended("a"), sum.extended("b"), sum.extended("c")), (1, 3, 0));
        sum.sub(&other);
        assert_eq!((sum.milli_cpu, sum.memory, sum.extended("a"), sum.extended("b")), (5, 0, 0, 2));
    }
}
