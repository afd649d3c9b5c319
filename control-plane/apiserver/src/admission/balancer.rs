//! Pools of load-balancer addresses stay clear of the cluster's own ranges: those of Services and of nodes' pods.
//! Ranges that come later are the controller's to notice: it gives none of their addresses out.

use serde_json::Value;
use sluice_api::{
    block::Block,
    status::{FieldError, Status},
};

use super::{list, text};
use crate::{auth::view::View, context::Admit, meta};

/// Refuses blocks that overlap; blocks that do not change are left alone.
pub(super) fn check_pool(view: &dyn View, admit: &Admit<'_>, pool: &Value) -> Result<(), Status> {
    let blocks = &pool["spec"]["blocks"];
    if admit.old.is_some_and(|old| old["spec"]["blocks"] == *blocks) {
        return Ok(());
    }
    let taken = ranges(view);
    let mut errors = Vec::new();
    for (i, value) in list(blocks).iter().enumerate() {
        let (cidr, start) = (text(value, "cidr"), text(value, "start"));
        let Some(block) = Block::parse(cidr, start, text(value, "stop")) else { continue };
        if let Some((range, what)) = taken.iter().find(|(range, _)| range.overlaps(block)) {
            let (field, shown) = if cidr.is_empty() { ("start", start) } else { ("cidr", cidr) };
            let detail = format!("must not overlap the range of {what} {range}");
            errors.push(FieldError::invalid(format!("spec.blocks[{i}].{field}"), shown, detail));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(admit.resource, meta::name(pool), errors)) }
}

fn ranges(view: &dyn View) -> Vec<(Block, String)> {
    let mut all = Vec::new();
    let mut add = |cidrs: &Value, what: &str| {
        all.extend(meta::strings(cidrs).into_iter().filter_map(Block::cidr).map(|range| (range, what.to_owned())));
    };
    for range in view.list("networking.k8s.io", "servicecidrs", "") {
        add(&range.value()["spec"]["cidrs"], "Services");
    }
    for node in view.list("", "nodes", "") {
        add(&node.value()["spec"]["podCIDRs"], &format!("node {}'s pods", node.name));
    }
    all
}
