#![allow(clippy::unwrap_used)]
use super::*;
use crate::resource::builtin;

/// Converts there and back; the way back has to give the original.
fn check(api: &str, other: &str, kind: &str, object: Value, want: Value) {
    let (from, to) = (builtin().by_type(api, kind).unwrap(), builtin().by_type(other, kind).unwrap());
    let there = convert(from, to, object.clone());
    assert_eq!(there, want);
    assert_eq!(convert(to, from, there), object);
    assert_eq!(convert(from, from, object.clone()), object);
}

#[test]
fn events_of_both_groups_are_one() {
    check(
        "v1",
        "events.k8s.io/v1",
        "Event",
        json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "p"}, "message": "m", "count": 2,
               "source": {"component": "c"}, "reportingComponent": "r", "firstTimestamp": "a", "lastTimestamp": "b",
               "reason": "R", "type": "Normal", "series": {"count": 1}}),
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "p"}, "note": "m",
               "deprecatedCount": 2, "deprecatedSource": {"component": "c"}, "reportingController": "r",
               "deprecatedFirstTimestamp": "a", "deprecatedLastTimestamp": "b", "reason": "R", "type": "Normal",
               "series": {"count": 1}}),
    );
}

#[test]
fn an_autoscaler_for_cpu_is_the_same_in_both_versions() {
    check(
        "autoscaling/v1",
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
               "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80},
               "status": {"currentReplicas": 1, "currentCPUUtilizationPercentage": 50}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
               "spec": {"maxReplicas": 3, "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 80}}}]},
               "status": {"currentReplicas": 1, "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                          "current": {"averageUtilization": 50}}}]}}),
    );
}

#[test]
fn what_version_one_lacks_is_kept_in_annotations() {
    let row = |api: &str| builtin().by_type(api, "HorizontalPodAutoscaler").unwrap();
    let metric = |kind: &str, field: &str, source: Value| json!({"type": kind, field: source});
    let utilization = json!({"type": "Utilization", "averageUtilization": 1});
    let object = json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "a", "annotations": {"x": "y"}},
        "spec": {
            "maxReplicas": 3,
            "behavior": {"scaleUp": {"stabilizationWindowSeconds": 5}},
            "metrics": [
                metric("Resource", "resource", json!({"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}})),
                metric("ContainerResource", "containerResource",
                       json!({"name": "cpu", "container": "c", "target": utilization})),
                metric("Pods", "pods", json!({"metric": {"name": "m", "selector": {}},
                       "target": {"type": "AverageValue", "averageValue": "1"}})),
                metric("Object", "object", json!({"describedObject": {"kind": "K", "name": "n"},
                       "metric": {"name": "m"}, "target": {"type": "Value", "value": "1"}})),
                metric("External", "external", json!({"metric": {"name": "m"},
                       "target": {"type": "AverageValue", "averageValue": "1"}})),
            ],
        },
        "status": {"conditions": [{"type": "AbleToScale", "status": "True"}], "desiredReplicas": 1},
    });
    let old = convert(row("autoscaling/v2"), row("autoscaling/v1"), object.clone());
    assert_eq!(old["spec"], json!({"maxReplicas": 3}));
    assert_eq!(old["status"], json!({"desiredReplicas": 1}));
    let kept: Value = serde_json::from_str(
        old["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"].as_str().unwrap(),
    )
    .unwrap();
    assert_eq!(
        kept[3],
        json!({"type": "Object", "object": {"target": {"kind": "K", "name": "n"}, "metricName": "m", "targetValue": "1"}})
    );
    assert_eq!(convert(row("autoscaling/v1"), row("autoscaling/v2"), old), object);
}
