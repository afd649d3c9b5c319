//! The kernel's own description of its types (BTF), as far as it is needed here: the names and numbers of an enum's values, and
//! where a structure has its members.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use memchr::memmem;

/// Where the kernel shows it.
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const STRUCTURE: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
/// Structures without a name inside of each other, at most.
const DEPTH: usize = 6;
/// The file has several megabytes, which nobody needs at once.
const PIECE: usize = 65_536;
/// No name is longer.
const NAME: usize = 512;

/// The values of an enum of 32 bits, in order; `None` when there is no such enum.
pub(crate) fn values(file: &impl FileExt, name: &str) -> io::Result<Option<Vec<(u32, String)>>> {
    let mut types = Types::open(file)?;
    let Some(label) = types.pieces.find(&types.strings, name)? else { return Ok(None) };
    let mut found = None;
    types.walk(|at| {
        let own = at.kind == ENUM && at.name == label && found.is_none();
        if own {
            found = Some(at.members);
        }
        own
    })?;
    let Some((at, length)) = found else { return Ok(None) };
    let members = types.pieces.get(at, length)?.to_vec();
    let member = |bytes: &[u8]| {
        let [name, value] = words(bytes);
        Ok((value, types.pieces.text(&types.strings, name)?))
    };
    members.chunks_exact(8).map(member).collect::<io::Result<_>>().map(Some)
}

/// Where structures have their members, in bytes from the start; `None` for what this kernel lacks. A member of a structure
/// without a name inside of another one is that other one's.
pub(crate) fn offsets<const N: usize>(file: &impl FileExt, wanted: [(&str, &str); N]) -> io::Result<[Option<u32>; N]> {
    let mut types = Types::open(file)?;
    let mut offsets = [None; N];
    // Structures to look into: which of the wanted members may be there, and where the structure begins.
    let mut ahead: Vec<(Whole, usize, u32)> = Vec::new();
    for (index, (structure, _)) in wanted.iter().enumerate() {
        if let Some(label) = types.pieces.find(&types.strings, structure)? {
            ahead.push((Whole::Named(label), index, 0));
        }
    }
    for _ in 0..DEPTH {
        if ahead.is_empty() {
            break;
        }
        let mut found = Vec::new();
        types.walk(|at| {
            let structure = matches!(at.kind, STRUCTURE | UNION);
            for (whole, index, start) in ahead.iter().filter(|_| structure) {
                let same = match whole {
                    Whole::Named(label) => at.kind == STRUCTURE && at.name == *label,
                    Whole::Number(number) => at.number == *number,
                };
                if same {
                    found.push((at.members, at.packed, *index, *start));
                }
            }
            false
        })?;
        ahead.clear();
        for ((at, length), packed, index, start) in found {
            let members = types.pieces.get(at, length)?.to_vec();
            for member in members.chunks_exact(12) {
                let [name, kind, place] = words(member);
                // With bit fields among the members the upper byte is a width.
                let start = start + if packed { place & 0xff_ffff } else { place } / 8;
                if name == 0 {
                    ahead.push((Whole::Number(kind), index, start));
                } else if offsets[index].is_none() && types.pieces.text(&types.strings, name)? == wanted[index].1 {
                    offsets[index] = Some(start);
                }
            }
        }
        ahead.retain(|(_, index, _)| offsets[*index].is_none());
    }
    Ok(offsets)
}

/// All of the offsets, or a sentence about what is missing.
pub(crate) fn all<const N: usize>(wanted: &[(&str, &str); N], offsets: [Option<u32>; N]) -> Result<[u32; N], String> {
    let missing: Vec<String> = wanted
        .iter()
        .zip(&offsets)
        .filter(|(_, offset)| offset.is_none())
        .map(|((structure, member), _)| format!("{structure}.{member}"))
        .collect();
    if missing.is_empty() {
        return Ok(offsets.map(Option::unwrap_or_default));
    }
    Err(format!("this kernel has no {}", missing.join(", ")))
}

/// A structure that is looked for.
enum Whole {
    Named(u32),
    Number(u32),
}

/// A type as the walk finds it.
struct Type {
    number: u32,
    name: u32,
    kind: u32,
    /// Where its members stand, and how many bytes they take.
    members: (u64, usize),
    /// Some members may be narrower than a byte.
    packed: bool,
}

/// All types of a file.
struct Types<'a, F> {
    pieces: Pieces<'a, F>,
    types: Range<u64>,
    strings: Range<u64>,
}

impl<'a, F: FileExt> Types<'a, F> {
    fn open(file: &'a F) -> io::Result<Types<'a, F>> {
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
        Ok(Types { pieces, types: part(types, types_length), strings: part(strings, strings_length) })
    }

    /// Shows every type in order until one is the last that is wanted.
    fn walk(&mut self, mut last: impl FnMut(Type) -> bool) -> io::Result<()> {
        let mut at = self.types.start;
        let mut number = 0;
        while at < self.types.end {
            let [name, info, _] = words(self.pieces.get(at, 12)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let behind = size(kind, count).ok_or_else(broken)?;
            number += 1;
            if last(Type { number, name, kind, members: (at + 12, behind), packed: info >> 31 != 0 }) {
                return Ok(());
            }
            at += 12 + behind as u64;
        }
        Ok(())
    }
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
            let found = memmem::find(self.get(at, length)?, &wanted);
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
        STRUCTURE | UNION | 15 | 19 => 12 * count,
        // Enums, prototypes.
        ENUM | 13 => 8 * count,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with an integer, two enums, and a structure that has a union without a name, behind each other.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0ONE\0b\0TWO\0NINE\0outer\0first\0second\0third\0";
        let enumeration = |name: u32, values: &[[u32; 2]]| {
            let head = [name, ENUM << 24 | values.len() as u32, 4];
            head.into_iter().chain(values.iter().flatten().copied()).collect::<Vec<u32>>()
        };
        let types: Vec<u32> = [1, 1 << 24, 4, 32]
            .into_iter()
            .chain(enumeration(5, &[[7, 1]]))
            .chain(enumeration(11, &[[13, 2], [17, 9]]))
            // The fourth and the fifth; the union begins behind the first member, which has three bits of its own.
            .chain([22, 1 << 31 | STRUCTURE << 24 | 2, 12, 28, 1, 3 << 24, 0, 5, 32])
            .chain([0, UNION << 24 | 2, 8, 34, 1, 0, 41, 1, 32])
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
    fn members_are_found_however_deep_they_are() {
        let wanted =
            [("outer", "first"), ("outer", "second"), ("outer", "third"), ("outer", "ONE"), ("inner", "first")];
        assert_eq!(offsets(&Sample(sample()), wanted).unwrap(), [Some(0), Some(4), Some(8), None, None]);
        // An enum is no structure.
        assert_eq!(offsets(&Sample(sample()), [("b", "TWO")]).unwrap(), [None]);
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
