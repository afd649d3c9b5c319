//! The user's rules: what a pod's failure means (podFailurePolicy, KEP-3329) and when enough has succeeded (successPolicy,
//! KEP-3998). Pure; messages as upstream's.

use std::collections::BTreeSet;

use super::indexes;
use crate::object::Object;
use crate::types::{FailureRule, Job, Pod};

/// What a pod's failure means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It counts.
    Count,
    /// It does not count.
    Ignore,
    /// The index is lost.
    FailIndex,
    /// The Job is lost; the message says why.
    FailJob(String),
}

/// The first rule that matches a failed pod; without one the failure counts.
pub(super) fn meaning(job: &Job, pod: &Pod) -> Meaning {
    let rules = job.spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (number, rule) in rules.enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Meaning::Ignore,
            "FailIndex" => Meaning::FailIndex,
            "FailJob" => Meaning::FailJob(format!("{what} matching FailJob rule at index {number}")),
            _ => Meaning::Count,
        };
    }
    Meaning::Count
}

/// What of the pod a rule matches, in words.
fn matched(rule: &FailureRule, pod: &Pod) -> Option<String> {
    if let Some(codes) = &rule.on_exit_codes {
        let containers = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
        let named = containers.filter(|c| codes.container_name.as_deref().is_none_or(|name| name == &*c.name));
        for container in named {
            let Some(code) = container.state.terminated.as_ref().map(|t| t.exit_code).filter(|code| *code != 0) else {
                continue;
            };
            if codes.values.contains(&code) == (codes.operator == "In") {
                let (name, namespace, pod) = (&container.name, pod.ns(), pod.name());
                return Some(format!("Container {name} for pod {namespace}/{pod} failed with exit code {code}"));
            }
        }
        return None;
    }
    let holds = |kind: &str, status: &str| pod.condition(kind).is_some_and(|c| c.status == status);
    let pattern = rule.on_pod_conditions.iter().find(|p| holds(&p.kind, p.status.as_deref().unwrap_or("True")))?;
    Some(format!("Pod {}/{} has condition {}", pod.ns(), pod.name(), pattern.kind))
}

/// The number of the first success rule that holds.
pub(super) fn succeeded(job: &Job, done: &BTreeSet<i32>) -> Option<usize> {
    let policy = job.spec.success_policy.as_ref()?;
    let completions = job.spec.completions.unwrap_or(0);
    policy.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, completions));
        let met = match &wanted {
            Some(wanted) => wanted.intersection(done).count(),
            None => done.len(),
        };
        match (rule.succeeded_count, wanted) {
            (Some(count), _) => met >= usize::try_from(count).unwrap_or(0),
            (None, Some(wanted)) => met == wanted.len(),
            (None, None) => false,
        }
    })
}
