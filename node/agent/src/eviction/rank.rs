//! Which pod goes when the node is short of something, and what it is told. Pure, in upstream's order and words.

use std::cmp::Reverse;

use crate::quantity;

/// What the node is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Memory,
    EphemeralStorage,
    Pids,
}

impl Resource {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::EphemeralStorage => "ephemeral-storage",
            Resource::Pids => "pids",
        }
    }
}

/// What one container takes and was promised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub container: String,
    pub usage: i128,
    pub request: i128,
}

/// A pod that could go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    /// All of the pod, containers and what they share.
    pub usage: i128,
    pub request: i128,
    pub shares: Vec<Share>,
}

/// Priority of `system-cluster-critical`, which is not evicted.
pub const CRITICAL: i32 = 2_000_000_000;

/// Who goes first: over its request, then lowest priority, then most above its request. Process numbers have no
/// requests: there priority and number alone count.
pub fn victim(candidates: &[Candidate], of: Resource) -> Option<&Candidate> {
    let over = |c: &Candidate| of == Resource::Pids || c.usage > c.request;
    let rank = |c: &&Candidate| (!over(c), c.priority, Reverse(c.usage - c.request));
    candidates.iter().filter(|c| c.usage > 0 && c.priority < CRITICAL).min_by_key(rank)
}

/// What the pod's status says.
pub fn message(victim: &Candidate, of: Resource, threshold: u64, available: u64) -> String {
    let name = of.name();
    let amount = |n: i128| if of == Resource::Pids { n.to_string() } else { quantity::binary(n) };
    let mut text = format!(
        "The node was low on resource: {name}. Threshold quantity: {}, available: {}. ",
        amount(threshold.into()),
        amount(available.into())
    );
    if of != Resource::Pids {
        for s in victim.shares.iter().filter(|s| s.usage > s.request) {
            text.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {name}. ",
                s.container,
                amount(s.usage),
                amount(s.request)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        let c = |uid: &str, priority, usage, request| Candidate {
            uid: uid.into(),
            priority,
            usage,
            request,
            ..Candidate::default()
        };
        for (list, expected) in [
            (vec![c("a", 0, 100, 200), c("b", 0, 50, 0)], Some("b")),
            (vec![c("a", 10, 500, 0), c("b", 0, 50, 0)], Some("b")),
            (vec![c("a", 0, 500, 100), c("b", 0, 450, 0)], Some("b")),
            (vec![c("a", CRITICAL, 500, 0)], None),
            (vec![c("a", 0, 0, 0)], None),
            (vec![], None),
        ] {
            assert_eq!(victim(&list, Resource::Memory).map(|c| c.uid.as_str()), expected, "{list:?}");
        }
    }

    #[test]
    fn words() {
        let shares = vec![
            Share { container: "a".into(), usage: 5 << 20, request: 0 },
            Share { container: "b".into(), usage: 1, request: 2 },
        ];
        let pod = Candidate { shares, ..Candidate::default() };
        assert_eq!(
            message(&pod, Resource::Memory, 100 << 20, 90 << 20),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. \
             Container a was using 5Mi, request is 0, has larger consumption of memory. "
        );
    }
}
