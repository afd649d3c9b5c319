//! Resizing a pod in place: what the spec asks for is first given by the node's account, then carried out on the
//! containers' cgroups (or by starting a container again), then said in the status.

use std::sync::Arc;

use serde_json::json;

use super::{Own, Worker};
use crate::admit::requests;
use crate::allocations::Refusal;
use crate::container::{self, pod_resources};
use crate::limits;
use crate::model::{Pod, Resources};
use crate::pod::machine::Event;
use crate::pod::resize::{Way, explicit, way, widest};
use crate::pod::state::{Phase, Resize};

/// A container's cgroup and what it is to hold.
struct Update {
    index: usize,
    id: String,
    name: String,
    limits: sluice_runtime::Resources,
}

impl Worker {
    /// Looks whether the pod's resources are what they should be, and takes the next step if not.
    pub(super) fn resize(&mut self) {
        if self.resizing || self.state.stop.is_some() {
            return;
        }
        self.allocate();
        let pod = self.allocated();
        let mut updates = Vec::new();
        for (index, c) in pod.own_containers().enumerate() {
            let state = &self.state.containers[index];
            let (Some(run), Some(has), Some(given)) = (state.run(), &state.resources, &state.allocated) else {
                continue;
            };
            if run.stopping.is_some() {
                continue;
            }
            match way(c, has, given) {
                Way::Done => {}
                Way::Restart => {
                    self.state.resize.get_or_insert(Resize::Under(None));
                    return self.event(Event::Restart { index });
                }
                Way::Update => updates.push(Update {
                    index,
                    id: run.id.clone(),
                    name: c.name.clone(),
                    limits: explicit(&container::resources(&pod, c, self.node.identity.memory)),
                }),
            }
        }
        if updates.is_empty() {
            if matches!(self.state.resize, Some(Resize::Under(_))) && !self.is_under_way(&pod) {
                self.state.resize = None;
                self.resized_event(&pod);
                self.event(Event::Wake);
            }
            return;
        }
        if !matches!(self.state.resize, Some(Resize::Under(Some(_)))) {
            self.state.resize = Some(Resize::Under(None));
        }
        self.update_cgroups(pod, updates);
        self.event(Event::Wake);
    }

    /// A container that will run has not yet what it was given.
    fn is_under_way(&self, pod: &Pod) -> bool {
        pod.own_containers().zip(self.state.each()).any(|(c, (_, spec, state))| {
            let ended = matches!(&state.phase, Phase::Exited { exit, .. } if !spec.restarts_after(exit.code));
            match (&state.resources, &state.allocated) {
                (Some(has), Some(given)) => !ended && way(c, has, given) != Way::Done,
                _ => false,
            }
        })
    }

    /// The pod with the resources it was given, which may not be those it asks for.
    pub(super) fn allocated(&self) -> Arc<Pod> {
        let states = &self.state.containers;
        let given = |i: usize| states.get(i).and_then(|c| c.allocated.as_ref());
        if self.pod.own_containers().enumerate().all(|(i, c)| given(i).is_none_or(|g| *g == c.resources)) {
            return self.pod.clone();
        }
        let mut pod = Pod::clone(&self.pod);
        let spec = &mut pod.spec;
        for (i, c) in spec.init_containers.iter_mut().chain(&mut spec.containers).enumerate() {
            if let Some(given) = given(i) {
                c.resources = given.clone();
            }
        }
        Arc::new(pod)
    }

    /// Enters the pod in the node's account with what it has or asks for.
    pub(super) fn enter(&mut self) {
        for (c, state) in self.pod.own_containers().zip(&mut self.state.containers) {
            state.allocated.get_or_insert_with(|| c.resources.clone());
        }
        self.node.allocations.enter(self.pod.uid(), requests(&self.allocated()));
    }

    /// Asks the node for what the spec wants now.
    fn allocate(&mut self) {
        let wanted: Vec<Resources> = self.pod.own_containers().map(|c| c.resources.clone()).collect();
        let same =
            self.pod.own_containers().zip(&self.state.containers).all(|(c, state)| {
                state.allocated.as_ref().is_none_or(|given| way(c, given, &c.resources) == Way::Done)
            });
        if same {
            if matches!(self.state.resize, Some(Resize::Pending { .. })) {
                self.state.resize = None;
                self.event(Event::Wake);
            }
            return;
        }
        let pending = match self.node.allocations.change(self.pod.uid(), requests(&self.pod)) {
            Ok(()) => {
                for (state, wanted) in self.state.containers.iter_mut().zip(wanted) {
                    state.allocated = Some(wanted);
                }
                self.state.resize = Some(Resize::Under(None));
                return;
            }
            Err(Refusal::Deferred(message)) => Resize::Pending { reason: "Deferred", message },
            Err(Refusal::Infeasible(message)) => Resize::Pending { reason: "Infeasible", message },
        };
        if self.state.resize.as_ref() == Some(&pending) {
            return;
        }
        if let Resize::Pending { reason, message } = &pending {
            let text = format!("Pod resize {}: {message}", reason.to_lowercase());
            self.node.recorder.pod(&self.pod, None, true, &format!("Resize{reason}"), &text);
        }
        self.state.resize = Some(pending);
        self.event(Event::Wake);
    }

    fn update_cgroups(&mut self, pod: Arc<Pod>, updates: Vec<Update>) {
        self.resizing = true;
        let mut before = Pod::clone(&pod);
        let spec = &mut before.spec;
        for (c, state) in spec.init_containers.iter_mut().chain(&mut spec.containers).zip(&self.state.containers) {
            if let Some(has) = &state.resources {
                c.resources = has.clone();
            }
        }
        let given = |u: &Update| self.state.containers[u.index].allocated.clone().unwrap_or_default();
        let done: Vec<(usize, String, Resources)> = updates.iter().map(|u| (u.index, u.id.clone(), given(u))).collect();
        let node = self.node.clone();
        self.task(async move {
            let work = async {
                let (qos, uid) = (container::qos(&pod), pod.uid());
                let (old, new) = (pod_resources(&before), pod_resources(&pod));
                let parent = node.runtime.make_cgroup(qos, uid, widest(&old, &new)).await?;
                for u in &updates {
                    let stats = node.runtime.stats(&u.id).await?;
                    if let Some(limit) = u.limits.memory_limit.filter(|l| *l > 0)
                        && stats.memory_usage > limit.unsigned_abs()
                    {
                        return Err(sluice_runtime::Error::Refused(format!(
                            "cannot decrease memory limits: container {:?}: the memory limit of {limit} bytes is below \
                             the current usage of {} bytes",
                            u.name, stats.memory_usage
                        )));
                    }
                    node.runtime.update_cgroup(&format!("{parent}/{}", u.id), u.limits.clone()).await?;
                }
                node.runtime.make_cgroup(qos, uid, explicit(&new)).await.map(drop)
            };
            Own::Resized(work.await.map(|()| done).map_err(|e| e.to_string()))
        });
    }

    pub(super) fn resized(&mut self, result: Result<Vec<(usize, String, Resources)>, String>) {
        self.resizing = false;
        match result {
            Ok(done) => {
                for (index, id, resources) in done {
                    let c = &mut self.state.containers[index];
                    if c.run().is_some_and(|run| run.id == id) {
                        c.resources = Some(resources);
                    }
                }
                if let Some(Resize::Under(error)) = &mut self.state.resize {
                    *error = None;
                }
                self.resize();
            }
            Err(message) => {
                let text = format!("Pod resize error: {message}");
                self.node.recorder.pod(&self.pod, None, true, "ResizeError", &text);
                self.state.resize = Some(Resize::Under(Some(message)));
                // What stood in the way may go without a word: memory that is in use now.
                self.resizing = true;
                self.task(async {
                    tokio::time::sleep(limits::RESIZE_RETRY).await;
                    Own::ResizeAgain
                });
                self.event(Event::Wake);
            }
        }
    }

    fn resized_event(&self, pod: &Pod) {
        let containers: Vec<_> =
            pod.spec.containers.iter().map(|c| json!({"name": c.name, "resources": c.resources})).collect();
        let about = json!({"containers": containers, "generation": pod.metadata.generation});
        self.node.recorder.pod(pod, None, false, "ResizeCompleted", &format!("Pod resize completed: {about}"));
    }
}
