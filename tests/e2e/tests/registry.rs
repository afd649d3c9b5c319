//! Images from a real registry (Debian's docker-registry) inside the node's network namespace: with
//! a pull secret of the pod, of its service account, and without one.

use std::{
    fs,
    process::{Child, Stdio},
};

use anyhow::{Result, ensure};
use sluice_e2e::{Lab, Options, output, sample_image, step};

/// `me` with the password `secret`.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const HOST: &str = "127.0.0.1:5000";

struct Registry(Child);

impl Registry {
    /// Serves in the lab's first node and holds the sample image as `private/echo:1`, which the node no longer has.
    fn start(lab: &Lab) -> Result<Self> {
        let node = &lab.nodes()[0];
        let dir = node.data_dir().with_file_name("registry");
        fs::create_dir_all(&dir)?;
        let place = dir.display();
        fs::write(dir.join("htpasswd"), HTPASSWD)?;
        let settings = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\nhttp: {{addr: \"{HOST}\"}}\n\
             auth: {{htpasswd: {{realm: test, path: {place}/htpasswd}}}}\n"
        );
        fs::write(dir.join("config.yml"), settings)?;
        let mut serve = node.command("docker-registry");
        let log = fs::File::create(dir.join("log"))?;
        let registry = Self(serve.arg("serve").arg(dir.join("config.yml")).stdout(Stdio::null()).stderr(log).spawn()?);
        let wait = format!("until curl -s -o /dev/null http://{HOST}/v2/; do sleep 0.1; done");
        output(node.command("timeout").args(["60", "sh", "-c", &wait]))?;

        let image = format!("{HOST}/private/echo:1");
        output(&mut node.sluice(&["image", "import", &sample_image().to_string_lossy()]))?;
        ctr(lab, &["tag", "sluice.local/echo:latest", &image])?;
        ctr(lab, &["push", "--plain-http", "--user", "me:secret", &image])?;
        ctr(lab, &["rm", "--sync", &image, "sluice.local/echo:latest"])?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // A registry that is already gone is as good as ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ctr images` on the node's containerd.
fn ctr(lab: &Lab, words: &[&str]) -> Result<()> {
    let node = &lab.nodes()[0];
    let socket = node.run_dir().join("containerd/containerd.sock");
    let mut command = node.command("ctr");
    output(command.arg("--address").arg(socket).args(["--namespace", "k8s.io", "images"]).args(words)).map(drop)
}

#[test]
fn images_come_from_a_private_registry() -> Result<()> {
    let lab = Lab::start(&Options::one("se6"))?;
    let _registry = Registry::start(&lab)?;
    step("without a secret the reason is said", || {
        lab.apply(&pod("stranger", ""))?;
        let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        lab.kubectl(&format!("wait --for={waiting}=ImagePullBackOff pod/stranger --timeout=60s"))?;
        let events = lab.kubectl("get events --field-selector involvedObject.name=stranger")?;
        ensure!(events.contains("Failed to pull image \"127.0.0.1:5000/private/echo:1\""), "events: {events}");
        Ok(())
    })?;
    lab.kubectl(&format!(
        "create secret docker-registry pull --docker-server={HOST} --docker-username=me --docker-password=secret"
    ))?;
    step("with the pod's own secret", || runs(&lab, "member", "imagePullSecrets: [{name: pull}]"))?;
    step("with its service account's secret", || {
        lab.kubectl("create serviceaccount puller")?;
        lab.kubectl_words(&["patch", "serviceaccount", "puller", "-p", r#"{"imagePullSecrets":[{"name":"pull"}]}"#])?;
        runs(&lab, "guest", "serviceAccountName: puller")
    })
}

fn runs(lab: &Lab, name: &str, more: &str) -> Result<()> {
    lab.apply(&pod(name, more))?;
    lab.kubectl(&format!("wait --for=condition=Ready pod/{name} --timeout=60s"))?;
    let events = lab.kubectl(&format!("get events --field-selector involvedObject.name={name}"))?;
    ensure!(events.contains("Successfully pulled image"), "events: {events}");
    Ok(())
}

fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  {more}\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: main, image: \"{HOST}/private/echo:1\", imagePullPolicy: Always}}]\n"
    )
}
