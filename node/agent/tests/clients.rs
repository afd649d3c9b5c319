//! What stock clients do with pods: images from a registry with credentials, terminals, attach, copies.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{IMAGE, World, in_namespace};
use serde_json::{Value, json};

/// `me` with the password `secret`.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

struct Registry {
    process: Child,
    host: String,
}

impl Registry {
    /// Debian's docker-registry on loopback, closed with a password.
    async fn start(dir: &Path) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        fs::create_dir_all(dir).unwrap();
        let at = dir.display();
        let settings = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {at}/data\nhttp:\n  addr: {host}\n\
             auth:\n  htpasswd:\n    realm: test\n    path: {at}/htpasswd\n"
        );
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        fs::write(dir.join("config.yml"), settings).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("install docker-registry: it is the registry of this test");
        let registry = Registry { process, host };
        for _ in 0..500 {
            if TcpStream::connect(&registry.host).is_ok() {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the registry does not listen on {}", registry.host);
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let out = Command::new("curl").args(["-sSf", "-u", "me:secret"]).args(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Pushes what a `docker save` archive holds.
    fn push(&self, archive: &Path, name: &str, tag: &str) -> String {
        let dir = archive.with_extension("d");
        fs::create_dir_all(&dir).unwrap();
        tar::Archive::new(fs::File::open(archive).unwrap()).unpack(&dir).unwrap();
        let blob = |file: &str| {
            let path = dir.join(file);
            let bytes = fs::read(&path).unwrap();
            let digest = format!("sha256:{}", common::sha256(&bytes));
            let start = format!("http://{}/v2/{name}/blobs/uploads/", self.host);
            let head = self.curl(&["-i", "-X", "POST", &start]);
            let location = head.lines().find_map(|l| l.strip_prefix("Location: ")).unwrap().trim().to_owned();
            let to = format!("{location}&digest={digest}");
            let data = format!("@{}", path.display());
            self.curl(&["-X", "PUT", "-H", "content-type: application/octet-stream", "--data-binary", &data, &to]);
            json!({"digest": digest, "size": bytes.len()})
        };
        let (mut config, mut layer) = (blob("config.json"), blob("l1/layer.tar"));
        config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let to = format!("http://{}/v2/{name}/manifests/{tag}", self.host);
        self.curl(&["-X", "PUT", "-H", &format!("content-type: {kind}"), "-d", &manifest.to_string(), &to]);
        format!("{}/{name}:{tag}", self.host)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn waiting(status: &Value) -> (&str, &str) {
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    (waiting["reason"].as_str().unwrap_or_default(), waiting["message"].as_str().unwrap_or_default())
}

#[test]
fn a_service_accounts_credentials_open_the_registry() {
    in_namespace(|| async {
        let w = World::start("registry").await;
        let registry = Registry::start(&w.dir.path().join("registry")).await;
        let image = registry.push(&w.dir.path().join("busybox.tar"), "team/app", "1");
        let of = |image: &str, policy: &str| {
            json!({"terminationGracePeriodSeconds": 1, "restartPolicy": "Never",
            "containers": [{"name": "a", "image": image, "imagePullPolicy": policy, "command": ["echo", "hi"]}]})
        };

        // Nobody's credentials: refused, then backed off.
        w.pod("stranger", of(&image, "IfNotPresent")).await;
        let status = w.until("stranger", "refused", |s| waiting(s).0 == "ErrImagePull").await;
        assert!(
            waiting(&status).1.contains("pull access denied, repository does not exist or may require authorization")
        );
        let status = w.until("stranger", "in back-off", |s| waiting(s).0 == "ImagePullBackOff").await;
        let begin = format!("Back-off pulling image \"{image}\": ErrImagePull: ");
        assert!(waiting(&status).1.starts_with(&begin), "{}", waiting(&status).1);

        // Those of its service account, put into the pod by admission.
        let auth = STANDARD.encode("me:secret");
        let config = json!({"auths": {registry.host.clone(): {"auth": auth}}}).to_string();
        let secret = json!({"metadata": {"name": "login"}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config}});
        w.post("/api/v1/namespaces/default/secrets", &secret).await.unwrap();
        let account = json!({"metadata": {"name": "puller"}, "imagePullSecrets": [{"name": "login"}]});
        w.post("/api/v1/namespaces/default/serviceaccounts", &account).await.unwrap();
        let mut spec = of(&image, "Always");
        spec["serviceAccountName"] = "puller".into();
        spec["volumes"] = json!([{"name": "v", "image": {"reference": image, "pullPolicy": "Always"}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        w.pod("friend", spec).await;
        let status = w.until("friend", "done", |s| s["phase"] == "Succeeded").await;
        let id = status["containerStatuses"][0]["imageID"].as_str().unwrap();
        assert!(id.starts_with(&format!("{}/team/app@sha256:", registry.host)), "{id}");
        let (_, events, _) = w.kubectl(&["get", "events", "-o", "custom-columns=R:.reason,M:.message"]);
        assert!(events.contains(&format!("Successfully pulled image \"{image}\" in ")), "{events}");

        // What is there needs no registry; what is not, and may not be pulled, says so.
        w.pod("present", of(&image, "Never")).await;
        w.until("present", "done", |s| s["phase"] == "Succeeded").await;
        for (name, image, policy, reason, message) in [
            (
                "never",
                "127.0.0.1:1/none:1",
                "Never",
                "ErrImageNeverPull",
                "Container image \"127.0.0.1:1/none:1\" is not present with pull policy of Never",
            ),
            (
                "invalid",
                "Bad!Name",
                "IfNotPresent",
                "InvalidImageName",
                "Failed to apply default image tag \"Bad!Name\": ",
            ),
        ] {
            w.pod(name, of(image, policy)).await;
            let status = w.until(name, "refused", |s| waiting(s).0 == reason).await;
            assert!(waiting(&status).1.starts_with(message), "{}", waiting(&status).1);
        }
        for name in ["stranger", "friend", "present", "never", "invalid"] {
            w.kubectl(&["delete", "pod", name, "--wait=false"]);
        }
        for name in ["stranger", "friend", "present", "never", "invalid"] {
            w.until(name, "gone", Value::is_null).await;
        }
        w.end().await;
    });
}

#[test]
fn terminals_and_streams() {
    in_namespace(|| async {
        let w = World::start("tty").await;
        let pod = |tty: bool| {
            json!({"terminationGracePeriodSeconds": 1, "restartPolicy": "Never", "containers": [
            {"name": "a", "image": IMAGE, "stdin": true, "stdinOnce": !tty, "tty": tty, "command": ["sh"]}]})
        };
        w.pod("plain", pod(false)).await;
        w.pod("screen", pod(true)).await;
        w.ready("plain").await;
        w.ready("screen").await;
        let kubectl = format!("kubectl --kubeconfig {}", w.kubeconfig.display());
        let shell = |script: &str| {
            let mut command = Command::new("timeout");
            let out = tokio::task::block_in_place(|| command.args(["30", "sh", "-c", script]).output().unwrap());
            String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
        };

        // Both ways through the container's own streams; its end is the end.
        let out = shell(&format!("printf 'echo one; echo two >&2\\nexit 3\\n' | {kubectl} attach -i plain 2>&1"));
        assert!(out.contains("one") && out.contains("two"), "{out}");
        let status = w.until("plain", "ended", |s| s["phase"] == "Failed").await;
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);

        // A terminal has the size of its user's.
        let sized =
            |command: &str| shell(&format!("script -qec 'stty rows 33 cols 99; {kubectl} {command}' /dev/null"));
        let out = sized("exec -it screen -- sh -c \"sleep 1; busybox stty size\"");
        assert!(out.contains("33 99"), "{out}");
        let typed = shell(&format!(
            "(sleep 1; echo 'echo $((6 * 7)); busybox stty size; exit') | \
             script -qec 'stty rows 31 cols 97; {kubectl} attach -it screen' /dev/null"
        ));
        assert!(typed.contains("42") && typed.contains("31 97"), "{typed}");
        w.until("screen", "ended", |s| s["phase"] == "Succeeded").await;

        let out = shell(&format!(
            "{kubectl} run once -i --rm --image {IMAGE} --restart=Never --overrides \
            '{{\"spec\":{{\"nodeName\":\"n1\"}}}}' -- sh -c 'echo made it' 2>&1"
        ));
        assert!(out.contains("made it"), "{out}");
        assert!(w.status("once").await.is_null(), "it removed itself");

        // tar through exec.
        w.pod(
            "copies",
            json!({"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "a", "image": IMAGE, "command": ["sleep", "1000"]}]}),
        )
        .await;
        w.ready("copies").await;
        let (there, back) = (w.dir.path().join("there"), w.dir.path().join("back"));
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        fs::write(&there, &bytes).unwrap();
        let (code, _, err) = w.kubectl(&["cp", there.to_str().unwrap(), "copies:/tmp/file"]);
        assert_eq!(code, 0, "{err}");
        let (code, _, err) = w.kubectl(&["cp", "copies:/tmp/file", back.to_str().unwrap()]);
        assert_eq!(code, 0, "{err}");
        assert!(fs::read(&back).unwrap() == bytes);
        for name in ["plain", "screen", "copies"] {
            w.kubectl(&["delete", "pod", name, "--wait=false"]);
            w.until(name, "gone", Value::is_null).await;
        }
        w.end().await;
    });
}
