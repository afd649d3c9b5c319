//! Whose network namespaces are: the map of all pods', and a table beside it where programs find most of them faster.

use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, MapData};
use sluice_ebpf_common::{Owner, maps};

use crate::pins::Pins;
use crate::store::{descriptor, typed};
use crate::{Error, sys};

pub(crate) struct Namespaces {
    all: HashMap<MapData, u64, u32>,
    owners: Array<MapData, Owner>,
}

impl Namespaces {
    /// The pinned maps. A build before knew the first one alone, so the table is written anew.
    pub(crate) fn open(pins: &Pins) -> Result<Namespaces, Error> {
        let namespaces = Namespaces { all: typed(pins, maps::NAMESPACES)?, owners: typed(pins, maps::OWNERS)? };
        let mut owners = vec![Owner::default(); namespaces.owners.len() as usize];
        for (cookie, link) in namespaces.all.iter().filter_map(Result::ok) {
            owners[Owner::place(cookie) as usize] = Owner::new(cookie, link);
        }
        let places: Vec<u32> = (0..namespaces.owners.len()).collect();
        sys::update_batch(descriptor(&pins.map(maps::OWNERS))?.as_fd(), &places, &owners)
            .map_err(|error| Error::system("write the namespaces", error))?;
        Ok(namespaces)
    }

    /// A namespace is a pod's, by the index of the node's side of its link.
    pub(crate) fn insert(&mut self, cookie: u64, link: u32) -> Result<(), Error> {
        self.all.insert(cookie, link, 0).map_err(failed)?;
        self.set(Owner::place(cookie), Owner::new(cookie, link))
    }

    /// A pod has none any more.
    pub(crate) fn forget(&mut self, link: u32) -> Result<(), Error> {
        let gone: Vec<u64> = self
            .all
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, known)| *known == link)
            .map(|(cookie, _)| cookie)
            .collect();
        for cookie in gone {
            let place = Owner::place(cookie);
            if self.owners.get(&place, 0).map_err(failed)?.namespace == cookie {
                self.set(place, Owner::default())?;
            }
            self.all.remove(&cookie).map_err(failed)?;
        }
        Ok(())
    }

    fn set(&mut self, place: u32, owner: Owner) -> Result<(), Error> {
        self.owners.set(place, owner, 0).map_err(failed)
    }
}

fn failed(error: aya::maps::MapError) -> Error {
    Error::ebpf("write the namespaces", error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Dataplane;
    use crate::common::isolated;

    #[test]
    fn two_namespaces_of_one_place_are_both_known() {
        isolated("namespaces::tests::two_namespaces_of_one_place_are_both_known", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            let pins = &dataplane.inner.pins;
            let mut namespaces = Namespaces::open(pins).unwrap();
            let (one, other) = (5, (6..).find(|cookie| Owner::place(*cookie) == Owner::place(5)).unwrap());
            let seen = |namespaces: &Namespaces| {
                let owner = namespaces.owners.get(&Owner::place(one), 0).unwrap();
                ([one, other].map(|cookie| namespaces.all.get(&cookie, 0).ok()), (owner.namespace, owner.link))
            };
            namespaces.insert(one, 11).unwrap();
            namespaces.insert(other, 12).unwrap();
            assert_eq!(seen(&namespaces), ([Some(11), Some(12)], (other, 12)));
            // As after a build that did not know the table.
            namespaces.set(Owner::place(one), Owner::new(99, 99)).unwrap();
            let mut namespaces = Namespaces::open(pins).unwrap();
            let again = seen(&namespaces);
            assert!([(one, 11), (other, 12)].contains(&again.1), "{again:?}");
            // Who goes takes its own entry along, and nobody else's.
            namespaces.insert(other, 12).unwrap();
            namespaces.forget(11).unwrap();
            assert_eq!(seen(&namespaces), ([None, Some(12)], (other, 12)));
            namespaces.forget(12).unwrap();
            assert_eq!(seen(&namespaces), ([None, None], (0, 0)));
        });
    }
}
