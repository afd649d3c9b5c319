//! Whose network namespaces are: the map of the pods whose sockets are translated, and a table beside it where programs find most
//! of them faster, and all other pods.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{Array, HashMap, MapData};
use sluice_ebpf_common::{Owner, maps};

use crate::pins::Pins;
use crate::store::{descriptor, typed};
use crate::{Error, sys};

pub(crate) struct Namespaces {
    all: HashMap<MapData, u64, u32>,
    owners: Array<MapData, Owner>,
    /// Those who stand in the table alone, by their places.
    by_packet: BTreeMap<u32, Owner>,
}

/// The cookie of a pod's network namespace.
pub(crate) fn cookie_of(netns: &Path) -> Result<u64, Error> {
    let failed = |error| Error::system(format!("look into the namespace {}", netns.display()), error);
    sys::netns_cookie_of(netns).map_err(failed)
}

impl Namespaces {
    /// The pinned maps. A build before knew the first one alone, so the table is written anew, but for what stands in it alone.
    pub(crate) fn open(pins: &Pins) -> Result<Namespaces, Error> {
        let (all, table): (HashMap<_, u64, u32>, Array<_, Owner>) =
            (typed(pins, maps::NAMESPACES)?, typed(pins, maps::OWNERS)?);
        let map = descriptor(&pins.map(maps::OWNERS))?;
        let mut by_packet = BTreeMap::new();
        sys::read_each(map.as_fd(), |place: u32, owner: Owner| {
            if owner.flags & Owner::BY_PACKET != 0 {
                by_packet.insert(place, owner);
            }
        })
        .map_err(|error| Error::system("read the namespaces", error))?;
        let mut owners = vec![Owner::default(); table.len() as usize];
        for (cookie, link) in all.iter().filter_map(Result::ok) {
            owners[Owner::place(cookie) as usize] = Owner::new(cookie, link, 0);
        }
        for (place, owner) in &by_packet {
            owners[*place as usize] = *owner;
        }
        let places: Vec<u32> = (0..table.len()).collect();
        sys::update_batch(map.as_fd(), &places, &owners)
            .map_err(|error| Error::system("write the namespaces", error))?;
        Ok(Namespaces { all, owners: table, by_packet })
    }

    /// A namespace is a pod's, by the index of the node's side of its link, and its sockets are translated.
    pub(crate) fn insert(&mut self, cookie: u64, link: u32) -> Result<(), Error> {
        self.all.insert(cookie, link, 0).map_err(failed)?;
        let place = Owner::place(cookie);
        if self.by_packet.get(&place).is_some_and(|owner| owner.namespace != cookie) {
            return Ok(());
        }
        self.by_packet.remove(&place);
        self.set(place, Owner::new(cookie, link, 0))
    }

    /// A namespace is a pod's whose packets are translated.
    pub(crate) fn insert_by_packet(&mut self, cookie: u64, link: u32) -> Result<(), Error> {
        let (place, owner) = (Owner::place(cookie), Owner::new(cookie, link, Owner::BY_PACKET));
        self.by_packet.insert(place, owner);
        self.set(place, owner)
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
        let gone: Vec<u32> =
            self.by_packet.iter().filter(|(_, owner)| owner.link == link).map(|(place, _)| *place).collect();
        for place in gone {
            self.by_packet.remove(&place);
            self.set(place, Owner::default())?;
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
            namespaces.set(Owner::place(one), Owner::new(99, 99, 0)).unwrap();
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

    #[test]
    fn who_stands_in_the_table_alone_keeps_its_place() {
        isolated("namespaces::tests::who_stands_in_the_table_alone_keeps_its_place", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            let pins = &dataplane.inner.pins;
            let mut namespaces = Namespaces::open(pins).unwrap();
            let (one, other) = (5, (6..).find(|cookie| Owner::place(*cookie) == Owner::place(5)).unwrap());
            namespaces.insert(other, 12).unwrap();
            namespaces.insert_by_packet(one, 11).unwrap();
            namespaces.insert(other, 12).unwrap();
            let mut namespaces = Namespaces::open(pins).unwrap();
            let stands = |namespaces: &Namespaces| namespaces.owners.get(&Owner::place(one), 0).unwrap();
            assert_eq!(stands(&namespaces), Owner::new(one, 11, Owner::BY_PACKET));
            assert_eq!(namespaces.all.get(&one, 0).ok(), None, "its sockets are not translated");
            namespaces.forget(12).unwrap();
            assert_eq!(stands(&namespaces).link, 11);
            namespaces.forget(11).unwrap();
            assert_eq!(stands(&namespaces), Owner::default());
        });
    }
}
