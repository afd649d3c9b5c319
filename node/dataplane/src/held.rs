//! What the kernel's maps hold, by number: how many need each thing, and which number a thing has. A thing has one number.
//! Pure.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::plan::List;

/// Things by number. Numbers are given out from the lowest on, so that there are few gaps.
#[derive(Clone, Debug)]
pub(crate) struct Held<T> {
    slots: Vec<Option<Slot<T>>>,
    /// Numbers by what they stand for.
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    thing: T,
    users: u32,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Held { slots: Vec::new(), numbers: HashTable::new(), hasher: DefaultHashBuilder::default() }
    }
}

impl<T: Eq + Hash> Held<T> {
    /// With these, which nobody needs yet. Where two are equal the last one is found.
    pub(crate) fn new(things: impl IntoIterator<Item = (u32, T)>) -> Self {
        let mut held = Held::default();
        things.into_iter().for_each(|(number, thing)| held.insert(number, thing));
        held
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.slots.get(number as usize)?.as_ref().map(|slot| &slot.thing)
    }

    /// The number of a thing.
    pub(crate) fn find<Q: Eq + Hash + ?Sized>(&self, thing: &Q) -> Option<u32>
    where
        T: Borrow<Q>,
    {
        let same = |number: &u32| self.get(*number).is_some_and(|known| known.borrow() == thing);
        self.numbers.find(self.hasher.hash_one(thing), same).copied()
    }

    /// Gives a free number to a thing that nobody needs yet.
    pub(crate) fn insert(&mut self, number: u32, thing: T) {
        let at = number as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        let hash = self.hasher.hash_one(&thing);
        if let Ok(entry) = self.numbers.find_entry(hash, |known| same(&self.slots, *known, &thing)) {
            entry.remove();
        }
        self.slots[at] = Some(Slot { thing, users: 0 });
        let (slots, hasher) = (&self.slots, &self.hasher);
        let rehash = |number: &u32| slots[*number as usize].as_ref().map_or(0, |slot| hasher.hash_one(&slot.thing));
        self.numbers.insert_unique(hash, number, rehash);
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let slot = self.slots.get_mut(number as usize)?.take()?;
        if let Ok(entry) = self.numbers.find_entry(self.hasher.hash_one(&slot.thing), |known| *known == number) {
            entry.remove();
        }
        Some(slot.thing)
    }

    /// One more needs it.
    pub(crate) fn add_user(&mut self, number: u32) {
        if let Some(Some(slot)) = self.slots.get_mut(number as usize) {
            slot.users += 1;
        }
    }

    /// One less needs it; true if it was the last one.
    pub(crate) fn drop_user(&mut self, number: u32) -> bool {
        let Some(Some(slot)) = self.slots.get_mut(number as usize) else { return false };
        slot.users = slot.users.saturating_sub(1);
        slot.users == 0
    }

    /// Does anybody need it?
    pub(crate) fn is_used(&self, number: u32) -> bool {
        matches!(self.slots.get(number as usize), Some(Some(slot)) if slot.users > 0)
    }

    pub(crate) fn len(&self) -> u32 {
        self.numbers.len() as u32
    }

    /// In the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.slots).filter_map(|(number, slot)| Some((number, &slot.as_ref()?.thing)))
    }
}

fn same<T: Eq>(slots: &[Option<Slot<T>>], number: u32, thing: &T) -> bool {
    slots.get(number as usize).and_then(Option::as_ref).is_some_and(|slot| slot.thing == *thing)
}

/// Backend lists, each with its first word.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    held: Held<PlacedList>,
    by_base: HashMap<u32, u32>,
    free: Vec<u32>,
}

/// A list and where it is; it is told from others by what it says.
#[derive(Clone, Debug)]
struct PlacedList {
    base: u32,
    list: Arc<List>,
}

impl Borrow<List> for PlacedList {
    fn borrow(&self) -> &List {
        &self.list
    }
}

impl PartialEq for PlacedList {
    fn eq(&self, other: &PlacedList) -> bool {
        self.list == other.list
    }
}

impl Eq for PlacedList {}

impl Hash for PlacedList {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.list.hash(state);
    }
}

impl Lists {
    pub(crate) fn get(&self, base: u32) -> Option<&Arc<List>> {
        self.held.get(*self.by_base.get(&base)?).map(|placed| &placed.list)
    }

    /// The first word of a list that is there.
    pub(crate) fn find(&self, list: &List) -> Option<u32> {
        self.held.get(self.held.find(list)?).map(|placed| placed.base)
    }

    pub(crate) fn insert(&mut self, base: u32, list: Arc<List>) {
        let number = self.free.pop().unwrap_or(self.by_base.len() as u32);
        self.held.insert(number, PlacedList { base, list });
        self.by_base.insert(base, number);
    }

    pub(crate) fn add_user(&mut self, base: u32) {
        if let Some(number) = self.by_base.get(&base) {
            self.held.add_user(*number);
        }
    }

    /// One user less; the list if it was the last one.
    pub(crate) fn drop_user(&mut self, base: u32) -> Option<Arc<List>> {
        let number = *self.by_base.get(&base)?;
        if !self.held.drop_user(number) {
            return None;
        }
        self.by_base.remove(&base);
        self.free.push(number);
        self.held.remove(number).map(|placed| placed.list)
    }

    /// By their first word.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Arc<List>)> {
        self.held.iter().map(|(_, placed)| (placed.base, &placed.list))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn things_have_numbers_and_users() {
        let mut held: Held<Arc<str>> = Held::new([(3, "a".into()), (5, "b".into())]);
        assert_eq!([held.find("a"), held.find("b"), held.find("c")], [Some(3), Some(5), None]);
        assert!(!held.is_used(3) && !held.drop_user(9));
        held.add_user(3);
        held.add_user(3);
        assert!(held.is_used(3) && !held.drop_user(3) && held.drop_user(3) && !held.is_used(3));
        assert_eq!(held.remove(3).as_deref(), Some("a"));
        assert_eq!((held.find("a"), held.get(3)), (None, None));
        assert_eq!(held.remove(3), None);
        held.insert(3, "c".into());
        assert_eq!(held.iter().map(|(number, name)| (number, &**name)).collect::<Vec<_>>(), [(3, "c"), (5, "b")]);
        (10..2_000).for_each(|number| held.insert(number, number.to_string().into()));
        assert!((10..2_000).all(|number| held.find(number.to_string().as_str()) == Some(number)));
        assert_eq!(held.len(), 1_992);
    }
}
