//! The kernel's own description of its types (BTF), as far as enums need it: a name and a number for each of their values.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Where the kernel shows it.
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const ENUM: u32 = 6;
/// The file has several megabytes, which nobody needs at once.
const PIECE: usize = 65_536;
/// No name is longer.
const NAME: usize = 512;

/// The values of an enum of 32 bits, in order; `None` when there is no such enum.
pub(crate) fn values(file: &impl FileExt, name: &str) -> io::Result<Option<Vec<(u32, String)>>> {
    let mut pieces = Pieces { file, at: 0, bytes: Vec::new() };
    let header = pieces.get(0, HEADER)?;
    let [form, own, types, types_length, strings, strings_length] = words(header);
    if form as u16 != MAGIC {
        return Err(broken());
    }
    let part = |start: u32, length: u32| {
        let start = u64::from(own) + u64::from(start);
        start..start + u64::from(length)
    };
    let (types, strings) = (part(types, types_length), part(strings, strings_length));
    let Some(label) = pieces.find(&strings, name)? else { return Ok(None) };
    let mut at = types.start;
    while at < types.end {
        let [own, info, _] = words(pieces.get(at, 12)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let behind = size(kind, count).ok_or_else(broken)?;
        if kind == ENUM && own == label {
            let members = pieces.get(at + 12, behind)?.to_vec();
            let member = |bytes: &[u8]| {
                let [name, value] = words(bytes);
                Ok((value, pieces.text(&strings, name)?))
            };
            return members.chunks_exact(8).map(member).collect::<io::Result<_>>().map(Some);
        }
        at += 12 + behind as u64;
    }
    Ok(None)
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's type information is of an unknown form")
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// A file of which one piece is in memory.
struct Pieces<'a, F> {
    file: &'a F,
    at: u64,
    bytes: Vec<u8>,
}

impl<F: FileExt> Pieces<'_, F> {
    /// So many bytes from there on.
    fn get(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let there = |at: u64, own: u64, have: usize| at >= own && at + length as u64 <= own + have as u64;
        if !there(at, self.at, self.bytes.len()) {
            self.load(at, length.max(PIECE))?;
        }
        let start = at.checked_sub(self.at).ok_or_else(broken)? as usize;
        self.bytes.get(start..start + length).ok_or_else(broken)
    }

    /// Reads on from there, as far as the file goes.
    fn load(&mut self, at: u64, length: usize) -> io::Result<()> {
        self.bytes.resize(length, 0);
        let mut have = 0;
        while have < length {
            match self.file.read_at(&mut self.bytes[have..], at + have as u64)? {
                0 => break,
                more => have += more,
            }
        }
        self.bytes.truncate(have);
        self.at = at;
        Ok(())
    }

    /// Where a name stands among the strings.
    fn find(&mut self, strings: &Range<u64>, name: &str) -> io::Result<Option<u32>> {
        let wanted: Vec<u8> = [0].into_iter().chain(name.bytes()).chain([0]).collect();
        let mut at = strings.start;
        while at < strings.end {
            let length = PIECE.min((strings.end - at) as usize);
            let found = self.get(at, length)?.windows(wanted.len()).position(|bytes| bytes == wanted);
            if let Some(found) = found {
                return Ok(Some((at - strings.start) as u32 + found as u32 + 1));
            }
            // A name may stand across two pieces.
            at += length.saturating_sub(wanted.len()).max(1) as u64;
        }
        Ok(None)
    }

    fn text(&mut self, strings: &Range<u64>, at: u32) -> io::Result<String> {
        let start = strings.start + u64::from(at);
        let length = strings.end.checked_sub(start).ok_or_else(broken)?.min(NAME as u64) as usize;
        let bytes = self.get(start, length)?;
        let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(broken)?;
        String::from_utf8(bytes[..end].to_vec()).map_err(|_| broken())
    }
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

    impl FileExt for Sample {
        fn read_at(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
            let rest = self.0.get(at as usize..).unwrap_or_default();
            // As files may, a little at a time.
            let length = rest.len().min(to.len()).min(7);
            to[..length].copy_from_slice(&rest[..length]);
            Ok(length)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    struct Sample(Vec<u8>);

    #[test]
    fn enums_are_found_by_name() {
        let file = Sample(sample());
        assert_eq!(values(&file, "b").unwrap(), Some(vec![(2, "TWO".to_owned()), (9, "NINE".to_owned())]));
        assert_eq!(values(&file, "c").unwrap(), None);
        // No enum.
        assert_eq!(values(&file, "int").unwrap(), None);
    }

    #[test]
    fn what_is_broken_is_refused() {
        let bytes = sample();
        for length in [0, 1, 20, 30, 60, bytes.len() - 1] {
            assert!(values(&Sample(bytes[..length].to_vec()), "b").is_err(), "{length}");
        }
        let mut unknown = bytes.clone();
        unknown[24 + 7] = 31;
        assert!(values(&Sample(unknown), "b").is_err());
    }
}
