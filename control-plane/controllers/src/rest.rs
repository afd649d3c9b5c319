//! Writes to the API as plain JSON, and the events that tell users about them.

use kube::api::{Api, DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};
use serde_json::{Value, json};

use crate::informer::Kind;
use crate::object::Object;

/// Creates an object of kind `K` (its `apiVersion` and `kind` are filled in) and returns it as stored.
///
/// # Errors
/// The API's answer.
pub(crate) async fn create<K: Kind>(client: &Client, namespace: &str, mut body: Value) -> kube::Result<K> {
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    let scope = (!namespace.is_empty()).then_some(namespace);
    let request = kube::core::Request::new(K::url_path(&(), scope))
        .create(&PostParams::default(), body.to_string().into_bytes())
        .map_err(kube::Error::BuildRequest)?;
    client.request(request).await
}

/// Merges `patch` into the object, provided it is still the same one.
///
/// # Errors
/// The API's answer.
pub(crate) async fn patch<K: Kind>(client: &Client, object: &K, patch: Value) -> kube::Result<K> {
    send_patch(client, object, None, patch).await
}

/// Merges `status` into the object's status, provided it is still the same one.
///
/// # Errors
/// The API's answer.
pub(crate) async fn patch_status<K: Kind>(client: &Client, object: &K, status: Value) -> kube::Result<K> {
    send_patch(client, object, Some("status"), json!({"status": status})).await
}

async fn send_patch<K: Kind>(client: &Client, object: &K, sub: Option<&str>, mut patch: Value) -> kube::Result<K> {
    patch["metadata"]["uid"] = json!(object.uid());
    let scope = Some(object.ns()).filter(|ns| !ns.is_empty());
    let request = kube::core::Request::new(K::url_path(&(), scope));
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    let request = match sub {
        Some(sub) => request.patch_subresource(sub, object.name(), &params, &patch),
        None => request.patch(object.name(), &params, &patch),
    };
    client.request(request.map_err(kube::Error::BuildRequest)?).await
}

/// Deletes the object, provided it is still the same one; already gone is fine.
///
/// # Errors
/// The API's answer.
pub(crate) async fn delete<K: Kind>(client: &Client, object: &K) -> kube::Result<()> {
    delete_with(client, object, DeleteParams::default()).await
}

/// Deletes the object in the background manner, its dependents are collected later.
///
/// # Errors
/// The API's answer.
pub(crate) async fn delete_background<K: Kind>(client: &Client, object: &K) -> kube::Result<()> {
    let policy = Some(PropagationPolicy::Background);
    delete_with(client, object, DeleteParams { propagation_policy: policy, ..Default::default() }).await
}

/// Deletes the object without grace.
///
/// # Errors
/// The API's answer.
pub(crate) async fn delete_now<K: Kind>(client: &Client, object: &K) -> kube::Result<()> {
    delete_with(client, object, DeleteParams { grace_period_seconds: Some(0), ..Default::default() }).await
}

async fn delete_with<K: Kind>(client: &Client, object: &K, mut params: DeleteParams) -> kube::Result<()> {
    params.preconditions = Some(Preconditions { uid: Some(object.uid().into()), resource_version: None });
    let scope = Some(object.ns()).filter(|ns| !ns.is_empty());
    let request = kube::core::Request::new(K::url_path(&(), scope))
        .delete(object.name(), &params)
        .map_err(kube::Error::BuildRequest)?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads the object past every cache.
///
/// # Errors
/// The API's answer.
pub(crate) async fn fresh<K>(client: &Client, namespace: &str, name: &str) -> kube::Result<Option<K>>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    Api::<K>::namespaced(client.clone(), namespace).get_opt(name).await
}

/// Whether the API, asked past every cache, still has this very object and nobody deletes it.
///
/// # Errors
/// The API's answer.
pub(crate) async fn lives<K: Kind>(client: &Client, object: &K) -> kube::Result<bool> {
    let scope = Some(object.ns()).filter(|ns| !ns.is_empty());
    let request = kube::core::Request::new(K::url_path(&(), scope))
        .get(object.name(), &GetParams::default())
        .map_err(kube::Error::BuildRequest)?;
    match client.request::<K>(request).await {
        Ok(found) => Ok(found.uid() == object.uid() && !found.deleting()),
        Err(error) if is(&error, 404) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets the object's finalizers, provided nobody changed it meanwhile, and returns it; already gone is fine.
///
/// # Errors
/// The API's answer.
pub(crate) async fn set_finalizers<K: Kind>(
    client: &Client,
    object: &K,
    finalizers: &[String],
) -> kube::Result<Option<K>> {
    let version = &object.meta().resource_version;
    let finalizers = Some(finalizers).filter(|finalizers| !finalizers.is_empty());
    let body = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
    match patch(client, object, body).await {
        Err(error) if is(&error, 404) => Ok(None),
        written => written.map(Some),
    }
}

/// Takes one finalizer off the object.
///
/// # Errors
/// The API's answer.
pub(crate) async fn remove_finalizer<K: Kind>(client: &Client, object: &K, finalizer: &str) -> kube::Result<()> {
    let left: Vec<String> = object.meta().finalizers.iter().flatten().filter(|f| *f != finalizer).cloned().collect();
    set_finalizers(client, object, &left).await.map(drop)
}

/// Merges `status` into the object's status, provided nobody changed the object meanwhile.
///
/// # Errors
/// The API's answer: 409 when somebody did.
pub(crate) async fn patch_status_of_version<K: Kind>(client: &Client, object: &K, status: Value) -> kube::Result<K> {
    let version = object.meta_version();
    send_patch(client, object, Some("status"), json!({"metadata": {"resourceVersion": version}, "status": status}))
        .await
}

/// Whether the API answered with this code.
pub(crate) fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Whether nothing can be created any more because the namespace is being deleted.
pub(crate) fn namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|d| &d.causes);
    status.code == 403
        && (causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
            || status.message.contains("being terminated"))
}

/// The API's own sentence, without the client's wrapping.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
