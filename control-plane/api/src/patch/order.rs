//! The order of merged lists in strategic merge: the patch's order wins, items that only the
//! server has keep their place relative to it as well as possible.

use serde_json::Value;

/// Orders `merged`: items that `wanted` has follow its order; the others keep the order of `live`
/// and are put before the first patch item that stood after them there.
pub(super) fn arrange(merged: Vec<Value>, wanted: &[Value], live: &[Value], key: Option<&str>) -> Vec<Value> {
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(wanted, item, key).is_some());
    named.sort_by_key(|item| position(wanted, item, key));
    others.sort_by_key(|item| position(live, item, key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return out,
            (None, _) => false,
            (_, None) => true,
            (Some(other), Some(item)) => match (position(live, other, key), position(live, item, key)) {
                (Some(other), Some(item)) => other < item,
                _ => false,
            },
        };
        out.extend(if other_first { others.next() } else { named.next() });
    }
}

/// Where `list` has the item: by its merge key, or by its value for primitives.
pub(super) fn position(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    match key {
        None => list.iter().position(|other| other == item),
        Some(key) => {
            let wanted = item.get(key)?;
            list.iter().position(|other| other.get(key) == Some(wanted))
        }
    }
}
