//! What answers look like: error Statuses, tables, partial metadata, documents, the edges of HTTP.
#![allow(clippy::unwrap_used)]

mod common;

use common::{MAPS, Server, configmap, pod};
use http::Method;
use serde_json::{Value, json};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[tokio::test]
async fn failures_read_as_upstreams() {
    let server = Server::start().await;
    let http = &server.admin;
    http.create(MAPS, configmap("a")).await;
    let check = async |method: &str, path: &str, body: Value, expected: (u16, &str, &str)| {
        let answer = http
            .send(method.parse::<Method>().unwrap(), path, &[("content-type", "application/json")], body.to_string())
            .await;
        let (code, reason, message) = answer.failed();
        assert_eq!((code, reason.as_str(), message.as_str()), expected, "{method} {path}");
    };
    let none = Value::Null;
    check("GET", "/api/v1/namespaces/default/pods/x", none.clone(), (404, "NotFound", "pods \"x\" not found")).await;
    check(
        "GET",
        "/apis/apps/v1/namespaces/default/deployments/x",
        none.clone(),
        (404, "NotFound", "deployments.apps \"x\" not found"),
    )
    .await;
    check("POST", MAPS, configmap("a"), (409, "AlreadyExists", "configmaps \"a\" already exists")).await;
    check(
        "POST",
        MAPS,
        json!({"metadata": {"name": "b", "namespace": "other"}}),
        (400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request"),
    )
    .await;
    check(
        "POST",
        MAPS,
        json!({"metadata": {}}),
        (422, "Invalid", "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"),
    )
    .await;
    check(
        "POST",
        "/api/v1/namespaces/none/configmaps",
        configmap("a"),
        (404, "NotFound", "namespaces \"none\" not found"),
    )
    .await;
    check(
        "PUT",
        &format!("{MAPS}/a"),
        configmap("b"),
        (400, "BadRequest", "the name of the object (b) does not match the name on the URL (a)"),
    )
    .await;
    check(
        "POST",
        MAPS,
        json!({"kind": "ConfigMap", "apiVersion": "v2", "metadata": {"name": "b"}}),
        (400, "BadRequest", "the API version in the data (v2) does not match the expected API version (v1)"),
    )
    .await;
    check(
        "GET",
        "/api/v1/nothings",
        none.clone(),
        (404, "NotFound", "the server could not find the requested resource"),
    )
    .await;
    check(
        "GET",
        "/apis/none.io/v1/things",
        none.clone(),
        (404, "NotFound", "the server could not find the requested resource"),
    )
    .await;
    check(
        "GET",
        &format!("{MAPS}/a/status"),
        none.clone(),
        (404, "NotFound", "the server could not find the requested resource"),
    )
    .await;
    check(
        "DELETE",
        "/api/v1/namespaces",
        none.clone(),
        (405, "MethodNotAllowed", "the server does not allow this method on the requested resource"),
    )
    .await;
    check(
        "GET",
        &format!("{MAPS}?limit=x"),
        none.clone(),
        (400, "BadRequest", "strconv.ParseInt: parsing \"x\": invalid syntax"),
    )
    .await;
    check(
        "GET",
        &format!("{MAPS}?fieldSelector=spec.x%3D1"),
        none,
        (400, "BadRequest", "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
    )
    .await;
    check("POST", MAPS, json!({"metadata": {"name": "b"}, "data": []}), (400, "BadRequest", "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string")).await;

    let answer = http.get("/nothing/here").await;
    assert_eq!((answer.code, answer.text.as_str()), (404, "404 page not found\n"));
    let answer = http.send(Method::POST, MAPS, &[("content-type", "text/plain")], "x").await;
    assert_eq!(answer.code, 415);
    let apply = http
        .send(Method::PATCH, &format!("{MAPS}/a?fieldManager=x"), &[("content-type", "application/json")], "{}")
        .await;
    assert_eq!(apply.code, 415);
    let answer = http.accept(MAPS, "text/html").await;
    assert_eq!(answer.failed().0, 406);
    let large =
        http.send(Method::POST, MAPS, &[("content-type", "application/json")], vec![b' '; 3 * 1024 * 1024 + 1]).await;
    assert_eq!(
        large.failed(),
        (413, "RequestEntityTooLarge".into(), "Request entity too large: limit is 3145728".into())
    );
}

#[tokio::test]
async fn tables_have_upstreams_columns() {
    let server = Server::start().await;
    server.namespace("n").await;
    let http = &server.admin;
    let pods = "/api/v1/namespaces/n/pods";
    let made = http.create(pods, pod("a")).await;
    let names = |table: &Value| -> Vec<String> {
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    let list = http.accept(pods, TABLE).await.ok();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(names(&list)[..5], ["Name", "Ready", "Status", "Restarts", "Age"]);
    let row = &list["rows"][0];
    assert_eq!(row["cells"].as_array().unwrap()[..3], [json!("a"), json!("0/1"), json!("Pending")]);
    assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(row["object"]["metadata"]["uid"], made["metadata"]["uid"]);
    let one = http.accept(&format!("{pods}/a?includeObject=Object"), TABLE).await.ok();
    assert_eq!(one["rows"][0]["object"]["spec"]["containers"][0]["name"], "c");
    let bare = http.accept(&format!("{pods}?includeObject=None"), TABLE).await.ok();
    assert!(bare["rows"][0].get("object").is_none());
    let empty = http.accept(MAPS, TABLE).await.ok();
    assert_eq!(empty["rows"].as_array().unwrap().len(), 0);

    let partial = http.accept(pods, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["kind"], "PartialObjectMetadata");
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert!(partial["items"][0].get("spec").is_none());
}

#[tokio::test]
async fn documents_describe_the_server() {
    let server = Server::start().await;
    let http = &server.admin;
    let version = http.get("/version").await.ok();
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("36")));
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(http.get(path).await.text, "ok", "{path}");
    }
    assert!(http.get("/readyz?verbose").await.text.contains("[+]etcd ok\n"));
    assert_eq!(http.get("/livez/ping").await.text, "ok");
    assert_eq!(http.get("/api").await.ok()["versions"], json!(["v1"]));
    let groups = http.get("/apis").await.ok();
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "apps"));
    let resources = http.get("/apis/apps/v1").await.ok();
    assert!(resources["resources"].as_array().unwrap().iter().any(|r| r["name"] == "deployments/scale"));
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let answer = http.accept("/apis", aggregated).await;
    let tag = answer.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(answer.headers["content-type"], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    assert_eq!(answer.ok()["kind"], "APIGroupDiscoveryList");
    let again = http.send(Method::GET, "/apis", &[("accept", aggregated), ("if-none-match", &tag)], "").await;
    assert_eq!((again.code, again.text.as_str()), (304, ""));
    let metrics = http.get("/metrics").await.text;
    assert!(metrics.contains("apiserver_request_total{verb=\"GET\""), "{metrics}");
    assert!(metrics.contains("sluice_store_revision "));
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let server = Server::listening().await;
    let jane = server.https("jane", &["devs"]).await;
    let (code, reason, message) = jane.get(MAPS).await.failed();
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (
            403,
            "Forbidden",
            "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
        )
    );
    let answer = jane.send(Method::GET, MAPS, &[("authorization", "Bearer nonsense")], "").await;
    assert!(matches!(answer.code, 401 | 403));
    assert_eq!(jane.get("/version").await.code, 200);
    let impersonator = server.https("root", &["system:masters"]).await;
    let (_, _, message) = impersonator.send(Method::GET, MAPS, &[("impersonate-user", "bob")], "").await.failed();
    assert!(message.contains("User \"bob\" cannot list"), "{message}");
}

#[tokio::test]
async fn services_get_addresses_and_ports() {
    let server = Server::start().await;
    let http = &server.admin;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| {
        let mut body = json!({"metadata": {"name": name}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
        for (key, value) in spec.as_object().unwrap() {
            body["spec"][key] = value.clone();
        }
        body
    };
    let web = http.create(services, service("web", json!({"type": "NodePort"}))).await;
    let address = web["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.96."));
    let port = web["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));

    let (code, _, message) = http.post(services, service("same", json!({"clusterIP": address}))).await.failed();
    assert_eq!(code, 422);
    assert!(
        message.contains("spec.clusterIPs: Invalid value: ") && message.ends_with("provided IP is already allocated"),
        "{message}"
    );
    let (_, _, message) = http.post(services, service("kube", json!({"clusterIP": "10.96.0.1"}))).await.failed();
    assert!(message.ends_with("provided IP is already allocated"), "{message}");
    let ports = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]});
    let (_, _, message) = http.post(services, service("ports", ports)).await.failed();
    assert_eq!(
        message,
        format!(
            "Service \"ports\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
        )
    );

    let headless = http.create(services, service("headless", json!({"clusterIP": "None"}))).await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    // kubectl apply sends no address: the old one stays.
    let kept = http.put(&format!("{services}/web"), service("web", json!({"type": "NodePort"}))).await.ok();
    assert_eq!(kept["spec"]["clusterIP"], address.as_str());
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], port);

    let many = (0..30).map(|i| http.create(services, service(&format!("s{i}"), json!({"type": "NodePort"}))));
    let made = futures::future::join_all(many).await;
    let mut ports: Vec<u64> = made.iter().map(|s| s["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).collect();
    let mut addresses: Vec<&str> = made.iter().map(|s| s["spec"]["clusterIP"].as_str().unwrap()).collect();
    ports.sort_unstable();
    ports.dedup();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!((ports.len(), addresses.len()), (30, 30), "made side by side, all differ");
}

#[tokio::test]
async fn evictions_respect_the_budget() {
    let server = Server::start().await;
    server.namespace("n").await;
    let http = &server.admin;
    let pods = "/api/v1/namespaces/n/pods";
    http.create(pods, pod("a")).await;
    let mut running = http.get(&format!("{pods}/a")).await.ok();
    running["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    http.put(&format!("{pods}/a/status"), running).await.ok();
    let budgets = "/apis/policy/v1/namespaces/n/poddisruptionbudgets";
    let mut budget = http
        .create(
            budgets,
            json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}}),
        )
        .await;
    budget["status"] = json!({"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1, "observedGeneration": 1});
    let mut budget = http.put(&format!("{budgets}/b/status"), budget).await.ok();

    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let refused = http.post(&format!("{pods}/a/eviction"), eviction.clone()).await;
    let (code, reason, message) = refused.failed();
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.")
    );
    assert_eq!(
        refused.json()["details"]["causes"],
        json!([{"reason": "DisruptionBudget", "message": "The disruption budget b needs 1 healthy pods and has 1 currently"}])
    );
    budget["status"]["disruptionsAllowed"] = json!(1);
    http.put(&format!("{budgets}/b/status"), budget).await.ok();
    // As kubectl before 1.22 says it.
    let older = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "a"}});
    assert_eq!(http.post(&format!("{pods}/a/eviction"), older).await.code, 201);
    assert_eq!(http.get(&format!("{pods}/a")).await.code, 404);
    let spent = http.get(&format!("{budgets}/b")).await.ok();
    assert_eq!(spent["status"]["disruptionsAllowed"], 0);
    assert!(spent["status"]["disruptedPods"]["a"].is_string());
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let server = Server::start().await;
    server.namespace("n").await;
    let http = &server.admin;
    let pods = "/api/v1/namespaces/n/pods";
    http.create(pods, pod("a")).await;
    let binding =
        |node: &str| json!({"metadata": {"name": "a"}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    assert_eq!(http.post(&format!("{pods}/a/binding"), binding("n1")).await.code, 201);
    let bound = http.get(&format!("{pods}/a")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert!(
        bound["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["status"] == "True")
    );
    let (code, _, message) = http.post("/api/v1/namespaces/n/bindings", binding("n2")).await.failed();
    assert_eq!(
        (code, message.as_str()),
        (409, "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n1\"")
    );
    let mine = http.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.ok();
    assert_eq!(mine["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn openapi_documents_are_tagged() {
    let server = Server::start().await;
    let http = &server.admin;
    let index = http.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let answer = http.get(url).await;
    assert_eq!(answer.headers["cache-control"], "public, immutable");
    let tag = answer.headers["etag"].to_str().unwrap().to_owned();
    let document = answer.ok();
    assert_eq!(document["openapi"], "3.0.0");
    assert!(document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"].is_object());
    let known = http.send(Method::GET, "/openapi/v3/apis/apps/v1", &[("if-none-match", &tag)], "").await;
    assert_eq!((known.code, known.text.as_str()), (304, ""));
    assert_eq!(http.get("/openapi/v3/apis/none/v1").await.code, 404);
    assert_eq!(http.get("/openapi/v2").await.ok()["swagger"], "2.0");
}

#[tokio::test]
async fn events_and_autoscalers_have_two_faces() {
    let server = Server::start().await;
    let http = &server.admin;
    let core = "/api/v1/namespaces/default/events";
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "hello", "type": "Normal", "source": {"component": "kubelet"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"});
    http.create(core, event).await;
    let new = http.get("/apis/events.k8s.io/v1/namespaces/default/events").await.ok();
    let item = &new["items"][0];
    assert_eq!((&item["apiVersion"], &item["note"]), (&json!("events.k8s.io/v1"), &json!("hello")));
    assert_eq!(item["regarding"]["name"], "p");
    let mine = http.get(&format!("{core}?fieldSelector=involvedObject.name%3Dp,reason%3DStarted")).await.ok();
    assert_eq!(mine["items"].as_array().unwrap().len(), 1);
    let mut watch = http.watch("/apis/events.k8s.io/v1/namespaces/default/events?watch=1").await;
    assert_eq!(watch.next().await.unwrap()["object"]["kind"], "Event");

    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let target = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
    let made = http
        .create(v1, json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target, "targetCPUUtilizationPercentage": 50}}))
        .await;
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 50);
    let v2 = http.get("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h").await.ok();
    assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
}

#[tokio::test]
async fn ephemeral_containers_come_by_their_own_way() {
    let server = Server::start().await;
    server.namespace("n").await;
    let http = &server.admin;
    let path = "/api/v1/namespaces/n/pods/a";
    http.create("/api/v1/namespaces/n/pods", pod("a")).await;
    let debugger = json!({"spec": {"ephemeralContainers": [{"name": "dbg", "image": "busybox"}]}});
    assert_eq!(http.patch(path, "strategic-merge", debugger.clone()).await.code, 422);
    let own = format!("{path}/ephemeralcontainers");
    let patched = http.patch(&own, "strategic-merge", debugger).await.ok();
    assert_eq!(patched["spec"]["ephemeralContainers"][0]["name"], "dbg");
    let (_, _, message) = http.patch(&own, "merge", json!({"spec": {"ephemeralContainers": []}})).await.failed();
    assert!(message.ends_with("existing ephemeral containers \"dbg\" may not be removed"), "{message}");
    let clash = json!({"spec": {"ephemeralContainers": [{"name": "c", "image": "busybox"}]}});
    assert_eq!(http.patch(&own, "strategic-merge", clash).await.code, 422, "the name is taken");
    let resize = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]}});
    let resized = http.patch(&format!("{path}/resize"), "strategic-merge", resize).await.ok();
    assert_eq!(resized["spec"]["containers"][0]["resources"]["requests"]["cpu"], "100m");
}
