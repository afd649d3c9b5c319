//! Secrets at rest: AES-256-GCM under the key of the key directory, in the form of upstream's
//! `aesgcm` provider (`k8s:enc:aesgcm:v1:key1:` + 12-byte nonce + ciphertext), with the store's
//! key as additional data so that a value cannot be moved under another name.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sluice_api::status::Status;

use crate::context::AtRest;

const PREFIX: &[u8] = b"k8s:enc:aesgcm:v1:key1:";
const SECRETS: &str = "/registry/secrets/";

/// Seals the values of Secrets and passes everything else.
pub struct SecretsAtRest {
    key: LessSafeKey,
}

impl SecretsAtRest {
    pub fn new(key: &[u8; 32]) -> anyhow::Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key)
            .map_err(|_| anyhow::anyhow!("the encryption key does not fit AES-256-GCM"))?;
        Ok(Self { key: LessSafeKey::new(key) })
    }
}

impl AtRest for SecretsAtRest {
    fn seal(&self, key: &str, plain: Bytes) -> Result<Bytes, Status> {
        if !key.starts_with(SECRETS) {
            return Ok(plain);
        }
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = plain.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(key.as_bytes()), &mut sealed)
            .map_err(|_| Status::internal(format!("{key} cannot be encrypted")))?;
        Ok([PREFIX, &nonce, &sealed].concat().into())
    }

    fn open(&self, key: &str, stored: &Bytes) -> Result<Bytes, Status> {
        let Some(sealed) = stored.strip_prefix(PREFIX) else {
            return Ok(stored.clone());
        };
        let opened = || {
            let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
            let mut text = text.to_vec();
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let plain = self.key.open_in_place(nonce, Aad::from(key.as_bytes()), &mut text).ok()?.len();
            text.truncate(plain);
            Some(Bytes::from(text))
        };
        opened().ok_or_else(|| {
            Status::internal(format!(
                "{key} cannot be decrypted: the value is damaged, or encryption.key is not the one it was written with"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn secrets_are_sealed_and_bound_to_their_key() {
        let at_rest = SecretsAtRest::new(&[7; 32]).unwrap();
        let plain = Bytes::from_static(b"{\"data\":{}}");
        let key = "/registry/secrets/shop/a";
        let sealed = at_rest.seal(key, plain.clone()).unwrap();
        assert!(sealed.starts_with(PREFIX));
        assert!(!sealed.windows(4).any(|w| w == b"data"));
        assert_ne!(sealed, at_rest.seal(key, plain.clone()).unwrap());
        assert_eq!(at_rest.open(key, &sealed).unwrap(), plain);
        assert!(at_rest.open("/registry/secrets/shop/b", &sealed).is_err());
        assert!(SecretsAtRest::new(&[8; 32]).unwrap().open(key, &sealed).is_err());
        let mut flipped = sealed.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(at_rest.open(key, &flipped.into()).is_err());
        assert!(at_rest.open(key, &sealed.slice(..PREFIX.len() + 3)).is_err());
    }

    #[test]
    fn other_values_pass_as_they_are() {
        let at_rest = SecretsAtRest::new(&[7; 32]).unwrap();
        let plain = Bytes::from_static(b"{}");
        let pods = "/registry/pods/shop/a";
        assert_eq!(at_rest.seal(pods, plain.clone()).unwrap(), plain);
        // Written before encryption was there.
        assert_eq!(at_rest.open("/registry/secrets/shop/a", &plain).unwrap(), plain);
    }
}
