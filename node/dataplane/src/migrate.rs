//! From the set of maps that the kernel's programs work on to the set of this build: maps whose layout is the same are shared,
//! others are made anew and filled by a table of conversions, so that established connections go on.
//!
//! A conversion is a pure function from an old element to a new one. The way back is a recipe, bytes to copy, which the newer
//! build notes beside its map: so an older build that is started again finds its way in a layout that it does not know. Where
//! nothing is known, a build takes back what it had itself.
//!
//! While flows change their layout, programs of two builds would make flows that the other one does not see. So at first the
//! new programs make none: packets that need one are dropped for some milliseconds and sent again. The old set is kept until
//! the new build has worked for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use aya::Ebpf;
use aya::programs::TcAttachType;
use sluice_ebpf_common::{Flow, FlowKey, SCHEMA, maps};
use tokio_util::sync::CancellationToken;

use crate::dataplane::Inner;
use crate::limits::KEEP;
use crate::pins::Pins;
use crate::resize::{self, Sizes};
use crate::{Dataplane, Error, catch_up, sweep, sys};

const ARRAY: u32 = 2;
const PER_CPU_HASH: u32 = 5;
const PER_CPU_ARRAY: u32 = 6;
const RING: u32 = 27;
const SOCKET_STORAGE: u32 = 24;

/// What a map's elements look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The kernel's number of the map's type.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Flags it was made with.
    pub flags: u32,
    /// Elements at most.
    pub entries: u32,
    /// Raised when the same bytes mean something else.
    pub revision: u32,
}

impl Layout {
    fn same(self, other: Layout) -> bool {
        Layout { entries: 0, ..self } == Layout { entries: 0, ..other }
    }

    /// Programs index arrays as far as they know them; every other map may have any size.
    fn serves(self, wanted: Layout) -> bool {
        self.same(wanted) && (!self.is_array() || self.entries >= wanted.entries)
    }

    fn is_array(self) -> bool {
        matches!(self.kind, ARRAY | PER_CPU_ARRAY)
    }

    /// Can its elements be listed and written?
    fn is_table(self) -> bool {
        !matches!(self.kind, RING | SOCKET_STORAGE)
    }

    /// Bytes of a value as user space reads it: per-CPU maps have one for each processor.
    fn stride(self) -> Result<usize, Error> {
        let value = self.value as usize;
        match self.kind {
            PER_CPU_HASH | PER_CPU_ARRAY => Ok(value.next_multiple_of(8) * crate::store::processors()?),
            _ => Ok(value),
        }
    }
}

/// An element: key and value.
pub type Element = (Vec<u8>, Vec<u8>);

/// Makes another element of one; `None` drops it.
pub type Convert = fn(&[u8], &[u8]) -> Option<Element>;

/// How the elements of a map become those of another revision of it.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// The map's name.
    pub map: &'static str,
    /// Older revision.
    pub from: u32,
    /// Newer revision.
    pub to: u32,
    /// From the older to the newer one.
    pub forward: Convert,
    /// From the newer to the older one.
    pub back: Recipe<&'static [Span]>,
}

/// How an element is made of another one's bytes; what no span says is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe<S> {
    /// Spans of the key.
    pub key: S,
    /// Spans of the value.
    pub value: S,
}

/// Bytes that are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where they stand.
    pub from: u32,
    /// Where they go.
    pub to: u32,
    /// How many.
    pub length: u32,
}

impl<S: AsRef<[Span]>> fmt::Display for Recipe<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, spans) in [('k', self.key.as_ref()), ('v', self.value.as_ref())] {
            for Span { from, to, length } in spans {
                write!(formatter, "{part}{from}>{to}+{length} ")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Recipe<Vec<Span>> {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut recipe = Recipe { key: Vec::new(), value: Vec::new() };
        for word in text.split_whitespace() {
            let (part, rest) = word.split_at_checked(1).ok_or(())?;
            let (from, rest) = rest.split_once('>').ok_or(())?;
            let (to, length) = rest.split_once('+').ok_or(())?;
            let number = |text: &str| text.parse::<u32>().map_err(drop);
            let span = Span { from: number(from)?, to: number(to)?, length: number(length)? };
            match part {
                "k" => recipe.key.push(span),
                "v" => recipe.value.push(span),
                _ => return Err(()),
            }
        }
        Ok(recipe)
    }
}

impl<S: AsRef<[Span]>> Recipe<S> {
    /// Makes an element of a layout; `None` if the recipe is for other sizes.
    fn make(&self, key: &[u8], value: &[u8], to: Layout) -> Option<Element> {
        Some((spans(self.key.as_ref(), key, to.key)?, spans(self.value.as_ref(), value, to.value)?))
    }
}

fn spans(spans: &[Span], from: &[u8], length: u32) -> Option<Vec<u8>> {
    let mut to = vec![0; length as usize];
    for span in spans {
        let at = |start: u32| start as usize..start.saturating_add(span.length) as usize;
        to.get_mut(at(span.to))?.copy_from_slice(from.get(at(span.from))?);
    }
    Some(to)
}

/// What a build knows of maps.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// Its schema.
    pub schema: u32,
    /// Revisions of its maps' layouts.
    pub revision: fn(&str) -> u32,
    /// Conversions from and to other revisions.
    pub migrations: &'static [Migration],
    /// What growing maps begin with.
    pub start: Sizes,
    /// How far they grow.
    pub most: Sizes,
}

/// This build.
pub const BUILD: Build = Build {
    schema: SCHEMA,
    revision: maps::revision,
    migrations: &[
        // The kernel makes room for all entries beforehand.
        Migration { map: maps::FLOWS, from: 1, to: 2, forward: same, back: FLOW },
        // Ports stand in other rows: they are taken anew for the connections that have them.
        Migration { map: maps::PORTS, from: 1, to: 2, forward: nothing, back: NO_PORTS },
    ],
    start: Sizes::START,
    most: Sizes::MOST,
};

const FLOW: Recipe<&[Span]> = Recipe { key: &[whole::<FlowKey>()], value: &[whole::<Flow>()] };

/// None is taken: a port that is in use all the same is passed over.
const NO_PORTS: Recipe<&[Span]> = Recipe { key: &[whole::<u32>()], value: &[] };

const fn whole<T>() -> Span {
    Span { from: 0, to: 0, length: size_of::<T>() as u32 }
}

fn same(key: &[u8], value: &[u8]) -> Option<Element> {
    Some((key.to_vec(), value.to_vec()))
}

fn nothing(_: &[u8], _: &[u8]) -> Option<Element> {
    None
}

/// How one element becomes another one.
#[derive(Clone, Debug)]
enum Conversion {
    Same,
    Function(Convert),
    Recipe(Recipe<Vec<Span>>, Layout),
}

impl Conversion {
    fn apply(&self, key: &[u8], value: &[u8]) -> Option<Element> {
        match self {
            Conversion::Same => Some((key.to_vec(), value.to_vec())),
            Conversion::Function(function) => function(key, value),
            Conversion::Recipe(recipe, to) => recipe.make(key, value, *to),
        }
    }
}

impl Build {
    /// How the elements of one layout of a map become those of another one. The note is what the set that has them says of
    /// the way back.
    fn conversion(&self, map: &str, from: Layout, to: Layout, note: Option<&str>) -> Option<Conversion> {
        if !(from.is_table() && to.is_table()) {
            return None;
        }
        if from.same(to) {
            return Some(Conversion::Same);
        }
        let mut known = self.migrations.iter().filter(|migration| migration.map == map);
        match known.find(|migration| (migration.from, migration.to) == (from.revision, to.revision)) {
            Some(migration) => Some(Conversion::Function(migration.forward)),
            None => Some(Conversion::Recipe(note?.parse().ok()?, to)),
        }
    }
}

/// A map that takes another one's place.
struct Change {
    name: &'static str,
    old: OwnedFd,
    from: Layout,
    conversion: Conversion,
}

/// Maps that change on the way from one set to another.
pub(crate) struct Adoption {
    changes: Vec<Change>,
    /// The set that the programs worked on until now, if it is another one.
    pub(crate) from: Option<Pins>,
}

fn layout(map: BorrowedFd<'_>, revision: u32) -> Result<Layout, Error> {
    let info = sys::map_info(map).map_err(|error| Error::system("ask the kernel about a map", error))?;
    let sys::MapInfo { kind, key, value, entries, flags } = info;
    Ok(Layout { kind, key, value, flags, entries, revision })
}

fn open(pins: &Pins, name: &str) -> Result<OwnedFd, Error> {
    let path = pins.map(name);
    sys::open_pinned(&path).map_err(|error| Error::system(format!("open {}", path.display()), error))
}

/// Brings this build's set in line with the one in use, as far as maps can be shared. Maps that have to be made anew are
/// missing afterwards, so that the loader makes them; then they can be filled with what is returned.
pub(crate) fn adopt(
    pins: &Pins,
    source: Option<&Pins>,
    build: &Build,
    wanted: &BTreeMap<&'static str, Layout>,
) -> Result<Adoption, Error> {
    let mut changes = Vec::new();
    if let Some(source) = source {
        let known = source.maps();
        for (name, wanted) in wanted.iter().filter(|(name, _)| known.contains(**name)) {
            let old = open(source, name)?;
            let from = layout(old.as_fd(), source.revision(name))?;
            // What this build made itself and only has to grow is grown later, without a moment of nothing.
            if from.serves(*wanted) || (source == pins && from.same(*wanted)) {
                pins.adopt(source, name)?;
                pins.set_revision(name, wanted.revision)?;
                continue;
            }
            let note = source.way_back(name, wanted.revision);
            if let Some(conversion) = build.conversion(name, from, *wanted, note.as_deref()) {
                pins.forget(name)?;
                changes.push(Change { name, old, from, conversion });
            } else {
                tracing::warn!(map = name, "its layout is unknown here; what this build had before is used again");
            }
        }
    }
    // What is left in this build's place from before has to be of its kind, too.
    let own: BTreeSet<String> = pins.maps();
    for (name, wanted) in wanted.iter().filter(|(name, _)| own.contains(**name)) {
        if !layout(open(pins, name)?.as_fd(), pins.revision(name))?.same(*wanted) {
            pins.forget(name)?;
        }
    }
    for (name, wanted) in wanted {
        pins.set_revision(name, wanted.revision)?;
        let known = build.migrations.iter().filter(|known| (known.map, known.to) == (*name, wanted.revision));
        for Migration { from, back, .. } in known {
            pins.set_way_back(name, *from, &back.to_string())?;
        }
    }
    Ok(Adoption { changes, from: source.filter(|source| *source != pins).cloned() })
}

impl Adoption {
    /// Has anything to be copied?
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Do flows change?
    pub(crate) fn holds_flows(&self) -> bool {
        self.changes.iter().any(|change| change.name == maps::FLOWS)
    }

    /// Fills the new maps, before any program uses them.
    pub(crate) fn copy(&self, pins: &Pins) -> Result<(), Error> {
        self.changes.iter().try_for_each(|change| change.copy(pins, false))?;
        if self.changes.iter().any(|change| change.name == maps::PORTS) { sweep::take_ports(pins) } else { Ok(()) }
    }

    /// Adds what older programs made since; the flows excepted.
    pub(crate) fn catch_up(&self, pins: &Pins) -> Result<(), Error> {
        let mut changes = self.changes.iter().filter(|change| !change.from.is_array() && change.name != maps::FLOWS);
        changes.try_for_each(|change| change.copy(pins, true))
    }

    /// Brings the flows in line with what older programs made of them, while new ones make none.
    pub(crate) fn catch_up_flows(&self, pins: &Pins) -> Result<(), Error> {
        let mut changes = self.changes.iter().filter(|change| change.name == maps::FLOWS);
        changes.try_for_each(|change| {
            catch_up::catch_up(pins, |take| {
                read(&change.old, change.from, &change.conversion, |key, value| {
                    if let (Some(key), Some(flow)) = (sys::exactly(key), sys::exactly(value)) {
                        take(key, flow);
                    }
                    Ok(())
                })
            })
        })
    }
}

impl Change {
    fn copy(&self, pins: &Pins, only_new: bool) -> Result<(), Error> {
        Copy { conversion: self.conversion.clone(), only_new }.run(&self.old, self.from, &open(pins, self.name)?)
    }
}

/// Hands over every element of a map, converted; the last thing that went wrong with one is returned in the end.
fn read(
    map: &OwnedFd,
    layout: Layout,
    conversion: &Conversion,
    mut take: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> Result<(), Error> {
    let mut result = Ok(());
    let (key, value) = (layout.key as usize, layout.stride()?);
    let read = sys::read_all(map.as_fd(), key, value, |keys, values| {
        for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)) {
            let Some((key, value)) = conversion.apply(key, value) else { continue };
            if let Err(error) = take(&key, &value) {
                result = Err(error);
            }
        }
    });
    read.and(result).map_err(|error| Error::system("copy a map", error))
}

/// Copies elements from one map to another.
pub(crate) struct Copy {
    conversion: Conversion,
    /// Leave what is there already as it is.
    only_new: bool,
}

impl Copy {
    /// Elements as they are.
    pub(crate) const ALL: Copy = Copy { conversion: Conversion::Same, only_new: false };

    /// Elements as they are, where there are none yet.
    pub(crate) const NEW: Copy = Copy { conversion: Conversion::Same, only_new: true };

    fn run(&self, old: &OwnedFd, from: Layout, to: &OwnedFd) -> Result<(), Error> {
        read(old, from, &self.conversion, |key, value| match self.only_new {
            true => sys::insert_new(to.as_fd(), key, value).map(drop),
            false => sys::write_one(to.as_fd(), key, value),
        })
    }

    /// Between two maps of one layout.
    pub(crate) fn between(&self, old: &OwnedFd, to: &OwnedFd) -> Result<(), Error> {
        self.run(old, layout(old.as_fd(), 0)?, to)
    }
}

impl Inner {
    /// Lets programs that make no flows take over, and brings the flows that they have in line with those of before.
    pub(crate) fn hold_flows(&self, holding: &mut Ebpf, adoption: &Adoption) -> Result<(), Error> {
        // Until they are in line, a connection that began anew with the ends of an earlier one is taken for that: as few as can be.
        adoption.catch_up_flows(&self.pins)?;
        // As no flow is made on arrival any more, answers that leave find all of them in the new map, too.
        self.flip_packets(holding, &[TcAttachType::Ingress])?;
        resize::let_packets_pass()?;
        adoption.catch_up_flows(&self.pins)?;
        self.flip(holding)?;
        resize::let_packets_pass()?;
        adoption.catch_up_flows(&self.pins)?;
        adoption.catch_up(&self.pins)
    }
}

impl Dataplane {
    /// Lets the set of maps that an earlier build worked on go when this one has worked for a while.
    pub(crate) async fn keep_for_rollback(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            () = tokio::time::sleep(KEEP) => self.confirm(),
        }
    }

    /// Gives up the set of maps that an earlier build worked on: from now on an older build that is started takes over as from
    /// any other one, and what it had is gone.
    pub fn confirm(&self) -> Result<(), Error> {
        self.inner.pins.remove_others(None)
    }
}

#[cfg(test)]
#[path = "migrate_tests.rs"]
mod tests;
