//! The kernel's own description of its types (BTF), as far as enums need it: a name and a number for each of their values.

use std::io;

/// Where the kernel shows it.
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const TYPE: usize = 12;
const ENUM: u32 = 6;

/// The values of an enum of 32 bits, in order; `None` when there is no such enum.
pub(crate) fn values(bytes: &[u8], name: &str) -> io::Result<Option<Vec<(u32, String)>>> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's type information is of an unknown form");
    find(bytes, name).ok_or_else(broken)
}

fn find(bytes: &[u8], name: &str) -> Option<Option<Vec<(u32, String)>>> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = word(4)? as usize;
    let part = |at: usize| {
        let (start, length) = (header.checked_add(word(at)? as usize)?, word(at + 4)? as usize);
        bytes.get(start..start.checked_add(length)?)
    };
    let (types, strings) = (part(8)?, part(16)?);
    let text = |at: u32| {
        let rest = strings.get(at as usize..)?;
        std::str::from_utf8(&rest[..rest.iter().position(|byte| *byte == 0)?]).ok()
    };
    let word = |at: usize| Some(u32::from_ne_bytes(types.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let mut at = 0;
    while at < types.len() {
        let (label, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        at += TYPE;
        if kind == ENUM && text(label)? == name {
            let value = |index: usize| Some((word(at + index * 8 + 4)?, text(word(at + index * 8)?)?.to_owned()));
            return (0..count).map(value).collect::<Option<Vec<_>>>().map(Some);
        }
        at += size(kind, count)?;
    }
    Some(None)
}

/// Bytes behind a type of a kind with so many members.
fn size(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forward declarations, other names, qualifiers, functions, floats, tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, tags of members.
        1 | 14 | 17 => 4,
        // An array.
        3 => 12,
        // Structures, unions, sections, enums of 64 bits.
        4 | 5 | 15 | 19 => 12 * count,
        // Enums, prototypes.
        ENUM | 13 => 8 * count,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with an integer and two enums behind each other.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0ONE\0b\0TWO\0NINE\0";
        let enumeration = |name: u32, values: &[[u32; 2]]| {
            let head = [name, ENUM << 24 | values.len() as u32, 4];
            head.into_iter().chain(values.iter().flatten().copied()).collect::<Vec<u32>>()
        };
        let types: Vec<u32> = [1, 1 << 24, 4, 32]
            .into_iter()
            .chain(enumeration(5, &[[7, 1]]))
            .chain(enumeration(11, &[[13, 2], [17, 9]]))
            .collect();
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let head = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend(head.into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn enums_are_found_by_name() {
        let bytes = sample();
        assert_eq!(values(&bytes, "b").unwrap(), Some(vec![(2, "TWO".to_owned()), (9, "NINE".to_owned())]));
        assert_eq!(values(&bytes, "c").unwrap(), None);
    }

    #[test]
    fn what_is_broken_is_refused() {
        let bytes = sample();
        for length in [0, 1, 20, 30, 60, bytes.len() - 1] {
            assert!(values(&bytes[..length], "b").is_err(), "{length}");
        }
        let mut unknown = bytes.clone();
        unknown[24 + 7] = 31;
        assert!(values(&unknown, "b").is_err());
    }
}
