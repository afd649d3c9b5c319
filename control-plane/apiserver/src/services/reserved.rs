//! What servers are about to give to Services: several may share one store, and the address that one
//! of them has chosen is in no Service yet. Each choice is therefore written down first, in one key
//! beside the objects, by comparison with its last state, and crossed out when its request is over.
//! What a crash leaves behind is forgotten once it is older than any request.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_api::status::Status;
use sluice_store::Revision;

use super::Taken;
use crate::{limits, meta, storage::Storage};

/// Beside the objects, so that the cache follows it; no object.
const KEY: &str = "services";

/// The addresses and ports of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    addresses: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    ports: BTreeSet<u16>,
}

/// What a server is about to store.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// `namespace/name` of the Service.
    service: String,
    /// Seconds since 1970.
    at: i64,
    #[serde(flatten)]
    held: Held,
}

/// The notes of all servers, and the revision they were read at.
pub(super) struct Reserved {
    notes: Vec<Note>,
    revision: Revision,
}

impl Held {
    /// Of a Service with its fields filled in.
    pub(super) fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let listed = meta::strings(&spec["clusterIPs"]).into_iter().chain(spec["clusterIP"].as_str());
        let numbers = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
        let port = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0);
        Self {
            addresses: listed.filter(|a| !matches!(*a, "" | "None")).map(str::to_owned).collect(),
            ports: numbers.chain([&spec["healthCheckNodePort"]]).filter_map(port).collect(),
        }
    }

    /// Whether all of this is in `other` too.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.addresses.is_subset(&other.addresses) && self.ports.is_subset(&other.ports)
    }
}

impl Reserved {
    /// The notes as they are now; the cache has every Service whose note is gone.
    pub(super) async fn read(storage: &Storage) -> Result<Self, Status> {
        let (bytes, revision) = storage.note(KEY).await?;
        let notes =
            if bytes.is_empty() { Vec::new() } else { serde_json::from_slice(&bytes).map_err(Status::internal)? };
        Ok(Self { notes, revision })
    }

    /// Counts what others are about to store as taken.
    pub(super) fn add_to(&self, taken: &mut Taken, service: &str) {
        for note in self.notes.iter().filter(|note| note.service != service) {
            taken.addresses.extend(note.held.addresses.iter().cloned());
            taken.ports.extend(&note.held.ports);
        }
    }

    /// Whether anything but this Service is noted.
    pub(super) fn others(&self, service: &str) -> bool {
        self.notes.iter().any(|note| note.service != service)
    }

    /// Notes what a Service is about to hold. False when another server has changed the notes since.
    pub(super) async fn note(mut self, storage: &Storage, service: &str, held: Held) -> Result<bool, Status> {
        let now = jiff::Timestamp::now().as_second();
        self.notes.retain(|note| note.at + limits::RESERVED_SECONDS > now && note.service != service);
        self.notes.push(Note { service: service.to_owned(), at: now, held });
        self.write(storage).await
    }

    /// Crosses out the note of a Service.
    pub(super) async fn cross_out(storage: &Storage, service: &str) -> Result<(), Status> {
        for _ in 0..limits::WRITE_ATTEMPTS {
            let mut reserved = Self::read(storage).await?;
            reserved.notes.retain(|note| note.service != service);
            if reserved.write(storage).await? {
                break;
            }
        }
        // One that is left is forgotten after its time.
        Ok(())
    }

    async fn write(self, storage: &Storage) -> Result<bool, Status> {
        let bytes = serde_json::to_vec(&self.notes).map_err(Status::internal)?;
        storage.replace_note(KEY, bytes, self.revision).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_service_holds() {
        let check = |spec: Value, addresses: &[&str], ports: &[u16]| {
            let held = Held::of(&json!({"spec": spec}));
            let expected = Held {
                addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
                ports: ports.iter().copied().collect(),
            };
            assert_eq!(held, expected);
        };
        check(json!({"clusterIP": "None", "clusterIPs": ["None"]}), &[], &[]);
        check(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}), &["10.0.0.1", "fd00::1"], &[]);
        check(
            json!({"ports": [{"nodePort": 30001}, {"port": 1}, {"nodePort": 0}], "healthCheckNodePort": 30002}),
            &[],
            &[30001, 30002],
        );
    }
}
