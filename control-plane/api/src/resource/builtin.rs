//! The built-in rows: Kubernetes 1.36's GA groups, in the order of upstream's discovery, and behind
//! them our own group.
//!
//! Facts (names, scopes, verbs, subresources) agree with the reference OpenAPI of 1.36; short
//! names, categories and store places with upstream's registries.

use super::{Resource, Storage, Str, Subresource, Subresources, Verbs};

/// Every row, expanded from the table.
pub(super) fn rows() -> impl Iterator<Item = Resource> {
    VERSIONS.iter().flat_map(|v| v.rows.iter().map(|row| row.expand(v)))
}

/// The body kinds and verbs of a subresource of `parent`.
pub(super) fn subresource(parent: &str, name: &'static str) -> Subresource {
    const WRITE: &[&str] = &["get", "patch", "update"];
    const CREATE: &[&str] = &["create"];
    const STREAM: &[&str] = &["create", "get"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    let (kind, verbs) = match name {
        "scale" => (Some(("autoscaling", "v1", "Scale")), WRITE),
        "binding" => (Some(("", "v1", "Binding")), CREATE),
        "eviction" => (Some(("policy", "v1", "Eviction")), CREATE),
        "token" => (Some(("authentication.k8s.io", "v1", "TokenRequest")), CREATE),
        "exec" => (Some(("", "v1", "PodExecOptions")), STREAM),
        "attach" => (Some(("", "v1", "PodAttachOptions")), STREAM),
        "portforward" => (Some(("", "v1", "PodPortForwardOptions")), STREAM),
        "proxy" => {
            let options = match parent {
                "Node" => "NodeProxyOptions",
                "Service" => "ServiceProxyOptions",
                _ => "PodProxyOptions",
            };
            (Some(("", "v1", options)), PROXY)
        }
        "log" => (None, &["get"][..]),
        "finalize" => (None, &["update"][..]),
        _ => (None, WRITE),
    };
    Subresource { name, kind, verbs }
}

/// One group and version with its rows.
struct Version {
    group: &'static str,
    version: &'static str,
    /// What its types' schema names begin with.
    package: &'static str,
    rows: &'static [Row],
}

/// A row as the table writes it: what differs from the common case.
struct Row {
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    status: bool,
    scale: bool,
    named: &'static [&'static str],
    verbs: Verbs,
    /// The place below `/registry/` where it is not the plural.
    place: &'static str,
    /// Group and version of the storage where they are not the row's own.
    stored: Option<(&'static str, &'static str)>,
    selectable: &'static [&'static str],
}

const ALL: &[&str] = &["all"];
const EXTENSIONS: &[&str] = &["api-extensions"];

const fn namespaced(kind: &'static str, plural: &'static str) -> Row {
    Row {
        kind,
        plural,
        namespaced: true,
        short: &[],
        categories: &[],
        status: false,
        scale: false,
        named: &[],
        verbs: Verbs::All,
        place: "",
        stored: None,
        selectable: &[],
    }
}

const fn cluster(kind: &'static str, plural: &'static str) -> Row {
    Row { namespaced: false, ..namespaced(kind, plural) }
}

impl Row {
    const fn short(self, short: &'static [&'static str]) -> Self {
        Self { short, ..self }
    }

    const fn categories(self, categories: &'static [&'static str]) -> Self {
        Self { categories, ..self }
    }

    const fn status(self) -> Self {
        Self { status: true, ..self }
    }

    const fn scale(self) -> Self {
        Self { scale: true, ..self }
    }

    const fn named(self, named: &'static [&'static str]) -> Self {
        Self { named, ..self }
    }

    const fn verbs(self, verbs: Verbs) -> Self {
        Self { verbs, ..self }
    }

    const fn place(self, place: &'static str) -> Self {
        Self { place, ..self }
    }

    const fn stored(self, group: &'static str, version: &'static str) -> Self {
        Self { stored: Some((group, version)), ..self }
    }

    const fn selectable(self, selectable: &'static [&'static str]) -> Self {
        Self { selectable, ..self }
    }

    fn expand(&self, v: &Version) -> Resource {
        let place = if self.place.is_empty() { self.plural } else { self.place };
        let (group, version) = self.stored.unwrap_or((v.group, v.version));
        let owned = |names: &'static [&'static str]| names.iter().map(|&n| Str::from(n)).collect();
        Resource {
            group: v.group.into(),
            version: v.version.into(),
            kind: self.kind.into(),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: self.kind.to_lowercase().into(),
            short_names: owned(self.short),
            categories: owned(self.categories),
            namespaced: self.namespaced,
            subresources: Subresources { status: self.status, scale: self.scale, named: self.named.into() },
            verbs: self.verbs,
            schema: format!("{}.{}", v.package, self.kind).into(),
            storage: Storage {
                prefix: format!("/registry/{place}/").into(),
                group: group.into(),
                version: version.into(),
            },
            selectable: owned(self.selectable),
            published: None,
            custom: None,
        }
    }
}

const POD_FIELDS: &[&str] = &[
    "spec.host",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const EVENTS_V1_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

const VERSIONS: &[Version] = &[
    Version {
        group: "",
        version: "v1",
        package: "io.k8s.api.core.v1",
        rows: &[
            namespaced("Binding", "bindings").verbs(Verbs::CreateOnly),
            cluster("ComponentStatus", "componentstatuses").short(&["cs"]).verbs(Verbs::ReadOnly),
            namespaced("ConfigMap", "configmaps").short(&["cm"]),
            namespaced("Endpoints", "endpoints").short(&["ep"]).place("services/endpoints"),
            namespaced("Event", "events").short(&["ev"]).selectable(EVENT_FIELDS),
            namespaced("LimitRange", "limitranges").short(&["limits"]),
            cluster("Namespace", "namespaces")
                .short(&["ns"])
                .status()
                .named(&["finalize"])
                .selectable(&["status.phase"])
                .verbs(Verbs::NoDeleteCollection),
            cluster("Node", "nodes")
                .short(&["no"])
                .status()
                .named(&["proxy"])
                .place("minions")
                .selectable(&["spec.unschedulable"]),
            namespaced("PersistentVolumeClaim", "persistentvolumeclaims").short(&["pvc"]).status(),
            cluster("PersistentVolume", "persistentvolumes").short(&["pv"]).status(),
            namespaced("Pod", "pods")
                .short(&["po"])
                .categories(ALL)
                .status()
                .named(&[
                    "attach",
                    "binding",
                    "ephemeralcontainers",
                    "eviction",
                    "exec",
                    "log",
                    "portforward",
                    "proxy",
                    "resize",
                ])
                .selectable(POD_FIELDS),
            namespaced("PodTemplate", "podtemplates"),
            namespaced("ReplicationController", "replicationcontrollers")
                .short(&["rc"])
                .categories(ALL)
                .status()
                .scale()
                .place("controllers")
                .selectable(&["status.replicas"]),
            namespaced("ResourceQuota", "resourcequotas").short(&["quota"]).status(),
            namespaced("Secret", "secrets").selectable(&["type"]),
            namespaced("ServiceAccount", "serviceaccounts").short(&["sa"]).named(&["token"]),
            namespaced("Service", "services")
                .short(&["svc"])
                .categories(ALL)
                .status()
                .named(&["proxy"])
                .place("services/specs")
                .selectable(&["spec.clusterIP", "spec.type"]),
        ],
    },
    Version {
        group: "apiregistration.k8s.io",
        version: "v1",
        package: "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1",
        rows: &[cluster("APIService", "apiservices")
            .categories(EXTENSIONS)
            .status()
            .place("apiregistration.k8s.io/apiservices")],
    },
    Version {
        group: "apps",
        version: "v1",
        package: "io.k8s.api.apps.v1",
        rows: &[
            namespaced("ControllerRevision", "controllerrevisions"),
            namespaced("DaemonSet", "daemonsets").short(&["ds"]).categories(ALL).status(),
            namespaced("Deployment", "deployments").short(&["deploy"]).categories(ALL).status().scale(),
            namespaced("ReplicaSet", "replicasets")
                .short(&["rs"])
                .categories(ALL)
                .status()
                .scale()
                .selectable(&["status.replicas"]),
            namespaced("StatefulSet", "statefulsets").short(&["sts"]).categories(ALL).status().scale(),
        ],
    },
    Version {
        group: "events.k8s.io",
        version: "v1",
        package: "io.k8s.api.events.v1",
        rows: &[namespaced("Event", "events").short(&["ev"]).stored("", "v1").selectable(EVENTS_V1_FIELDS)],
    },
    Version {
        group: "authentication.k8s.io",
        version: "v1",
        package: "io.k8s.api.authentication.v1",
        rows: &[
            cluster("SelfSubjectReview", "selfsubjectreviews").verbs(Verbs::CreateOnly),
            cluster("TokenReview", "tokenreviews").verbs(Verbs::CreateOnly),
        ],
    },
    Version {
        group: "authorization.k8s.io",
        version: "v1",
        package: "io.k8s.api.authorization.v1",
        rows: &[
            namespaced("LocalSubjectAccessReview", "localsubjectaccessreviews").verbs(Verbs::CreateOnly),
            cluster("SelfSubjectAccessReview", "selfsubjectaccessreviews").verbs(Verbs::CreateOnly),
            cluster("SelfSubjectRulesReview", "selfsubjectrulesreviews").verbs(Verbs::CreateOnly),
            cluster("SubjectAccessReview", "subjectaccessreviews").verbs(Verbs::CreateOnly),
        ],
    },
    Version {
        group: "autoscaling",
        version: "v2",
        package: "io.k8s.api.autoscaling.v2",
        rows: &[namespaced("HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .short(&["hpa"])
            .categories(ALL)
            .status()],
    },
    Version {
        group: "autoscaling",
        version: "v1",
        package: "io.k8s.api.autoscaling.v1",
        rows: &[namespaced("HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .short(&["hpa"])
            .categories(ALL)
            .status()
            .stored("autoscaling", "v2")],
    },
    Version {
        group: "batch",
        version: "v1",
        package: "io.k8s.api.batch.v1",
        rows: &[
            namespaced("CronJob", "cronjobs").short(&["cj"]).categories(ALL).status(),
            namespaced("Job", "jobs").categories(ALL).status().selectable(&["status.successful"]),
        ],
    },
    Version {
        group: "certificates.k8s.io",
        version: "v1",
        package: "io.k8s.api.certificates.v1",
        rows: &[cluster("CertificateSigningRequest", "certificatesigningrequests")
            .short(&["csr"])
            .status()
            .named(&["approval"])
            .selectable(&["spec.signerName"])],
    },
    Version {
        group: "networking.k8s.io",
        version: "v1",
        package: "io.k8s.api.networking.v1",
        rows: &[
            cluster("IngressClass", "ingressclasses"),
            namespaced("Ingress", "ingresses").short(&["ing"]).status().place("ingress"),
            cluster("IPAddress", "ipaddresses").short(&["ip"]),
            namespaced("NetworkPolicy", "networkpolicies").short(&["netpol"]),
            cluster("ServiceCIDR", "servicecidrs").status(),
        ],
    },
    Version {
        group: "policy",
        version: "v1",
        package: "io.k8s.api.policy.v1",
        rows: &[namespaced("PodDisruptionBudget", "poddisruptionbudgets").short(&["pdb"]).status()],
    },
    Version {
        group: "rbac.authorization.k8s.io",
        version: "v1",
        package: "io.k8s.api.rbac.v1",
        rows: &[
            cluster("ClusterRoleBinding", "clusterrolebindings"),
            cluster("ClusterRole", "clusterroles"),
            namespaced("RoleBinding", "rolebindings"),
            namespaced("Role", "roles"),
        ],
    },
    Version {
        group: "storage.k8s.io",
        version: "v1",
        package: "io.k8s.api.storage.v1",
        rows: &[
            cluster("CSIDriver", "csidrivers"),
            cluster("CSINode", "csinodes"),
            namespaced("CSIStorageCapacity", "csistoragecapacities"),
            cluster("StorageClass", "storageclasses").short(&["sc"]),
            cluster("VolumeAttachment", "volumeattachments").status(),
            cluster("VolumeAttributesClass", "volumeattributesclasses").short(&["vac"]),
        ],
    },
    Version {
        group: "admissionregistration.k8s.io",
        version: "v1",
        package: "io.k8s.api.admissionregistration.v1",
        rows: &[
            cluster("MutatingAdmissionPolicy", "mutatingadmissionpolicies").categories(EXTENSIONS),
            cluster("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings").categories(EXTENSIONS),
            cluster("MutatingWebhookConfiguration", "mutatingwebhookconfigurations").categories(EXTENSIONS),
            cluster("ValidatingAdmissionPolicy", "validatingadmissionpolicies").categories(EXTENSIONS).status(),
            cluster("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings").categories(EXTENSIONS),
            cluster("ValidatingWebhookConfiguration", "validatingwebhookconfigurations").categories(EXTENSIONS),
        ],
    },
    Version {
        group: "apiextensions.k8s.io",
        version: "v1",
        package: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
        rows: &[cluster("CustomResourceDefinition", "customresourcedefinitions")
            .short(&["crd", "crds"])
            .categories(EXTENSIONS)
            .status()
            .place("apiextensions.k8s.io/customresourcedefinitions")],
    },
    Version {
        group: "scheduling.k8s.io",
        version: "v1",
        package: "io.k8s.api.scheduling.v1",
        rows: &[cluster("PriorityClass", "priorityclasses").short(&["pc"])],
    },
    Version {
        group: "coordination.k8s.io",
        version: "v1",
        package: "io.k8s.api.coordination.v1",
        rows: &[namespaced("Lease", "leases")],
    },
    Version {
        group: "node.k8s.io",
        version: "v1",
        package: "io.k8s.api.node.v1",
        rows: &[cluster("RuntimeClass", "runtimeclasses")],
    },
    Version {
        group: "discovery.k8s.io",
        version: "v1",
        package: "io.k8s.api.discovery.v1",
        rows: &[namespaced("EndpointSlice", "endpointslices")],
    },
    Version {
        group: "flowcontrol.apiserver.k8s.io",
        version: "v1",
        package: "io.k8s.api.flowcontrol.v1",
        rows: &[
            cluster("FlowSchema", "flowschemas").status(),
            cluster("PriorityLevelConfiguration", "prioritylevelconfigurations").status(),
        ],
    },
    Version {
        group: "resource.k8s.io",
        version: "v1",
        package: "io.k8s.api.resource.v1",
        rows: &[
            cluster("DeviceClass", "deviceclasses"),
            namespaced("ResourceClaim", "resourceclaims").status(),
            namespaced("ResourceClaimTemplate", "resourceclaimtemplates"),
            cluster("ResourceSlice", "resourceslices").selectable(&["spec.nodeName", "spec.driver"]),
        ],
    },
    Version {
        group: "sluice.dev",
        version: "v1",
        package: "dev.sluice.v1",
        rows: &[
            cluster("LoadBalancerAnnouncement", "loadbalancerannouncements")
                .short(&["lbannounce"])
                .status()
                .place("sluice.dev/loadbalancerannouncements"),
            cluster("LoadBalancerPool", "loadbalancerpools")
                .short(&["lbpool"])
                .status()
                .place("sluice.dev/loadbalancerpools"),
        ],
    },
];
