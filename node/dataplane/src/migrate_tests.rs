#![allow(clippy::unwrap_used)]

use super::*;

const HASH: u32 = 1;

fn layout(kind: u32, value: u32, entries: u32, revision: u32) -> Layout {
    Layout { kind, key: 4, value, flags: 0, entries, revision }
}

fn longer(key: &[u8], value: &[u8]) -> Option<Element> {
    Some((key.to_vec(), [value, &[0; 4]].concat()))
}

const BACK: Recipe<&[Span]> = Recipe {
    key: &[Span { from: 0, to: 0, length: 4 }],
    value: &[Span { from: 0, to: 0, length: 2 }, Span { from: 2, to: 2, length: 2 }],
};

const WIDER: Build =
    Build { migrations: &[Migration { map: "m", from: 1, to: 2, forward: longer, back: BACK }], ..BUILD };

#[test]
fn maps_are_shared_when_programs_can_use_them() {
    let wanted = layout(ARRAY, 8, 10, 1);
    let cases = [
        (layout(ARRAY, 8, 10, 1), true),
        (layout(ARRAY, 8, 11, 1), true),
        (layout(ARRAY, 8, 9, 1), false),
        (layout(ARRAY, 4, 10, 1), false),
        (layout(ARRAY, 8, 10, 2), false),
        (layout(HASH, 8, 10, 1), false),
    ];
    for (known, expected) in cases {
        assert_eq!(known.serves(wanted), expected, "{known:?}");
    }
    assert!(layout(HASH, 8, 9, 1).serves(layout(HASH, 8, 10, 1)), "only arrays are indexed");
}

#[test]
fn the_way_is_found_in_both_directions() {
    let (old, new) = (layout(HASH, 4, 8, 1), layout(HASH, 8, 8, 2));
    let (key, value) = WIDER.conversion("m", old, new, None).unwrap().apply(&[1, 2, 3, 4], &[5, 6, 7, 8]).unwrap();
    assert_eq!((key.as_slice(), value.as_slice()), (&[1, 2, 3, 4][..], &[5, 6, 7, 8, 0, 0, 0, 0][..]));
    // An older build knows no table: it has the newer one's note alone.
    let note = BACK.to_string();
    assert_eq!(note, "k0>0+4 v0>0+2 v2>2+2 ");
    let back = BUILD.conversion("m", new, old, Some(&note)).unwrap();
    assert_eq!(back.apply(&key, &value).unwrap(), (key.clone(), vec![5, 6, 7, 8]));
    // A note for other sizes makes nothing of them.
    assert_eq!(back.apply(&key, &[1]), None);
    // Unknown maps and revisions, nonsense, what cannot be listed.
    assert!(WIDER.conversion("other", old, new, None).is_none());
    assert!(WIDER.conversion("m", old, layout(HASH, 8, 8, 3), None).is_none());
    for note in ["x0>0+4", "k0", "k0>0", "ka>0+1", "é"] {
        assert!(BUILD.conversion("m", new, old, Some(note)).is_none(), "{note}");
    }
    assert!(
        BUILD.conversion("m", layout(ARRAY, 4, 8, 1), layout(ARRAY, 4, 9, 1), None).is_some(),
        "an array that grew"
    );
    assert!(BUILD.conversion("m", layout(RING, 4, 8, 1), layout(RING, 4, 9, 1), None).is_none());
}

#[test]
fn the_layouts_of_this_build_are_those_of_its_types() {
    use sluice_ebpf_common::{Flow, FlowKey, SocketState};
    let layouts = crate::object::layouts(&BUILD).unwrap();
    assert_eq!(layouts.len(), maps::ALL.len());
    let sizes = |name: &str| (layouts[name].key as usize, layouts[name].value as usize);
    assert_eq!(sizes(maps::FLOWS), (size_of::<FlowKey>(), size_of::<Flow>()));
    assert_eq!(sizes(maps::SOCKETS), (4, size_of::<SocketState>()));
    assert_eq!(layouts[maps::FLOWS].entries, BUILD.start.flows);
}
