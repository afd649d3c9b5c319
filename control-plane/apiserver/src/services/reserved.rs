//! What servers are about to give to Services: several may share one store, and the address that one
//! of them has chosen is in no Service yet. Each choice is therefore written down first, in one key
//! beside the objects, by comparison with its last state, and crossed out when its request is over.
//! What a crash leaves behind is forgotten once it is older than any request.

use serde::{Deserialize, Serialize};
use sluice_api::status::Status;
use sluice_store::Revision;

use super::{Held, Taken};
use crate::{limits, storage::Storage};

/// Beside the objects, so that the cache follows it; no object.
const KEY: &str = "services";

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
            taken.add(&note.held);
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
