//! Server-side apply as stock kubectl does it, and the OpenAPI document that older ones read, over HTTPS on the
//! loopback interface.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Stdio;

use common::Server;
use tokio::{io::AsyncWriteExt as _, process::Command};

struct Kubectl {
    kubeconfig: std::path::PathBuf,
}

impl Kubectl {
    fn new(server: &Server) -> Self {
        let url = format!("https://{}", server.address);
        let kubeconfig = server.dir.path().join("kubeconfig");
        let text = server.api.pki().kubeconfig(&url, "admin", &["system:masters"]).unwrap();
        std::fs::write(&kubeconfig, text).unwrap();
        Self { kubeconfig }
    }

    /// Output and errors of one command that reads `input`.
    async fn run(&self, args: &str, input: &str) -> (bool, String) {
        let mut child = Command::new("kubectl")
            .args(args.split(' '))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.kubeconfig.parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl has to be installed for this test");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    #[track_caller]
    fn ok(&self, args: &str, input: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        let (args, input) = (args.to_owned(), input.to_owned());
        async move {
            let (ok, text) = self.run(&args, &input).await;
            assert!(ok, "{caller}: kubectl {args}: {text}");
            text
        }
    }

    async fn fails(&self, args: &str, input: &str) -> String {
        let (ok, text) = self.run(args, input).await;
        assert!(!ok, "kubectl {args}: {text}");
        text
    }
}

fn deployment(replicas: u32, image: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
         spec:\n      containers:\n      - {{name: c, image: \"{image}\", ports: [{{containerPort: 80}}]}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_kubectl_applies_on_the_server() {
    let server = Server::listening().await;
    let kubectl = Kubectl::new(&server);
    let applied = "deployment.apps/web serverside-applied\n";
    // From client-side to server-side apply without a conflict.
    kubectl.ok("apply -f -", &deployment(2, "nginx:1")).await;
    assert_eq!(kubectl.ok("apply --server-side -f -", &deployment(2, "nginx:2")).await, applied);
    let version = "get deployment web -o jsonpath={.metadata.resourceVersion}";
    let before = kubectl.ok(version, "").await;
    kubectl.ok("apply --server-side -f -", &deployment(2, "nginx:2")).await;
    assert_eq!(kubectl.ok(version, "").await, before, "nothing changed");
    // Somebody else scales.
    kubectl.ok("scale deployment web --replicas=5", "").await;
    let conflict = kubectl.fails("apply --server-side -f -", &deployment(3, "nginx:2")).await;
    let expected = "error: Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas\n";
    assert!(conflict.starts_with(expected), "{conflict}");
    let forced = kubectl.ok("apply --server-side --force-conflicts -f -", &deployment(3, "nginx:2")).await;
    assert_eq!(forced, applied);
    let replicas = "get deployment web -o jsonpath={.spec.replicas}";
    assert_eq!(kubectl.ok(replicas, "").await, "3");
    // Only tried.
    let tried = kubectl.ok("apply --server-side --dry-run=server -f -", &deployment(4, "nginx:2")).await;
    assert_eq!(tried, "deployment.apps/web serverside-applied (server dry run)\n");
    assert_eq!(kubectl.ok(replicas, "").await, "3");
    let (_, diff) = kubectl.run("diff --server-side -f -", &deployment(4, "nginx:2")).await;
    assert!(diff.contains("-  replicas: 3\n+  replicas: 4\n"), "{diff}");
    // Shown when asked for alone.
    assert!(!kubectl.ok("get deployment web -o yaml", "").await.contains("managedFields"));
    assert!(kubectl.ok("get deployment web -o yaml --show-managed-fields", "").await.contains("f:replicas: {}"));
    let wrong = deployment(3, "nginx:2").replace("replicas: 3", "replica: 3");
    let refused = kubectl.fails("apply --server-side -f -", &wrong).await;
    assert_eq!(
        refused,
        "Error from server: failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replica: field not declared in schema\n"
    );
}

/// kubectl before 1.27 knows kinds by this document alone; later ones still read it when told to.
#[tokio::test(flavor = "multi_thread")]
async fn version_two_of_openapi_explains() {
    let server = Server::listening().await;
    let kubectl = Kubectl::new(&server);
    let text = kubectl.ok("explain deployment.spec.strategy --output=plaintext-openapiv2", "").await;
    for part in ["KIND:     Deployment", "VERSION:  apps/v1", "rollingUpdate\t<Object>", "type\t<string>"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
