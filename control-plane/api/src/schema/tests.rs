#![allow(clippy::unwrap_used)]
use serde_json::Value;

use super::*;
use crate::resource;

fn get(name: &str) -> TypeRef<'static> {
    builtin().get(name).unwrap()
}

#[test]
fn every_resource_and_subresource_has_a_schema() {
    for row in resource::builtin().iter() {
        let schema = builtin().get(&row.schema).unwrap_or_else(|| panic!("{}", row.schema));
        for field in ["apiVersion", "kind", "metadata"] {
            assert!(schema.field(field).is_some(), "{} {field}", row.schema);
        }
        assert_eq!(schema.field("status").is_some(), row.subresources.status || has_own_status(row));
    }
}

/// Kinds whose status is no subresource.
fn has_own_status(row: &resource::Resource) -> bool {
    row.verbs == resource::Verbs::CreateOnly && row.kind.ends_with("Review")
}

#[test]
fn fields_have_shapes() {
    let pod = get("io.k8s.api.core.v1.Pod");
    let Shape::Object(spec) = pod.field("spec").unwrap().shape() else { panic!() };
    assert_eq!((spec.short_name(), spec.field("containers").unwrap().required()), ("PodSpec", true));
    let Shape::Array(item) = spec.field("containers").unwrap().shape() else { panic!() };
    let Shape::Object(container) = item.shape() else { panic!() };
    assert_eq!(container.name(), "io.k8s.api.core.v1.Container");
    let check = |schema: &str, field: &str, shape: &str| {
        let found = get(schema).field(field).unwrap().shape();
        let found = match found {
            Shape::Map(item) => format!("Map {:?}", item.shape()),
            Shape::Array(item) => format!("Array {:?}", item.shape()),
            other => format!("{other:?}"),
        };
        assert_eq!(found, shape, "{schema} {field}");
    };
    check("io.k8s.api.core.v1.ContainerPort", "containerPort", "Int32");
    check("io.k8s.api.core.v1.PodSpec", "terminationGracePeriodSeconds", "Int64");
    check("io.k8s.api.core.v1.ResourceRequirements", "limits", "Map Quantity");
    check("io.k8s.api.core.v1.HTTPGetAction", "port", "IntOrString");
    check("io.k8s.api.core.v1.Secret", "data", "Map Bytes");
    check("io.k8s.api.core.v1.PodSpec", "hostNetwork", "Bool");
    check("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "creationTimestamp", "Time");
    check("io.k8s.api.coordination.v1.LeaseSpec", "renewTime", "MicroTime");
    check("io.k8s.api.apps.v1.ControllerRevision", "data", "Any");
    let schema = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    check(schema, "additionalProperties", &format!("ObjectOr({schema})"));
    check(schema, "maximum", "Number");
    check(schema, "default", "Any");
}

#[test]
fn fields_have_facts() {
    let facts = |schema: &str, field: &str| get(schema).field(field).unwrap().facts();
    let ports = facts("io.k8s.api.core.v1.Container", "ports");
    assert_eq!((ports.list, ports.merge_key.as_deref()), (Some(ListType::Map), Some("containerPort")));
    assert_eq!(ports.keys, ["containerPort", "protocol"]);
    assert_eq!(facts("io.k8s.api.core.v1.PodSpec", "volumes").patch_strategy(), Some("merge,retainKeys"));
    assert!(facts("io.k8s.api.apps.v1.DeploymentSpec", "strategy").retain_keys);
    assert!(facts("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers").merge);
    assert_eq!(facts("io.k8s.api.core.v1.ContainerPort", "protocol").default, Some("TCP".into()));
    assert_eq!(*facts("io.k8s.api.core.v1.Container", "image"), Facts::NONE);
    assert!(get("io.k8s.api.core.v1.LocalObjectReference").facts().atomic);
}

#[test]
fn every_fact_is_about_a_known_field() {
    let apart = ["io.k8s.api.core.v1.RangeAllocation", "io.k8s.apimachinery.pkg.apis.meta.v1."];
    for (name, field, _) in facts::table() {
        let Some(schema) = builtin().get(name) else {
            assert!(apart.iter().any(|a| name.starts_with(a)), "{name}");
            continue;
        };
        assert!(field == "." || schema.field(field).is_some(), "{name} {field}");
    }
}

/// The numbers of the generated arena stay within each other.
#[test]
fn every_type_can_be_walked() {
    let mut fields = 0;
    for schema in builtin().types() {
        assert!(builtin().get(schema.name()).is_some(), "{schema:?}");
        for field in schema.fields() {
            let mut shape = field.shape();
            while let Shape::Array(item) | Shape::Map(item) = shape {
                shape = item.shape();
            }
            fields += usize::from(!field.name().is_empty());
        }
    }
    assert!(fields > 2000, "{fields}");
}

#[test]
fn the_unpacked_schemas_are_those_of_the_arena() {
    let definitions = definitions();
    for schema in builtin().types() {
        let definition: Value = serde_json::from_str(definitions[schema.name()].get()).unwrap();
        for field in schema.fields() {
            assert!(definition["properties"].get(field.name()).is_some(), "{schema:?} {}", field.name());
        }
    }
}
