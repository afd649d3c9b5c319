//! The node daemon: runs the pods bound to its node through containerd, the pod network and the data plane, reports
//! their status, serves the node's HTTPS API and keeps the Node object alive. It talks to the API server only
//! through `kube::Client`, and keeps no file of its own about pods: a restarted daemon reads everything back from
//! containerd, the kernel and the API server.

pub mod limits;
pub mod model;
pub mod pod;
pub mod quantity;
