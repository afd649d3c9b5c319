//! Renewal before the end: sleeps until 70 to 90 % of a certificate's life is over, asks for the next one, and tries
//! again with growing delays as long as that fails.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::request::{self, Purpose};
use super::{Membership, Place};
use crate::limits;

/// Renews one of the certificates again and again.
pub(super) async fn forever(member: &Membership, purpose: Purpose) {
    let mut delay = limits::SETUP_RETRY_FIRST;
    loop {
        let pem = current(&member.place, purpose);
        // The generator must not live across the wait: it belongs to its thread.
        let share = rand::rng().random_range(0.7..0.9);
        tokio::time::sleep(nap(&pem, SystemTime::now(), share)).await;
        let fresh = request::certificate(&member.client(), &member.place, purpose).await;
        let result = match fresh {
            Ok(pem) => member.adopt(purpose, &pem).await,
            Err(e) => Err(e),
        };
        match result {
            Ok(()) => {
                tracing::info!(?purpose, "certificate renewed");
                delay = limits::SETUP_RETRY_FIRST;
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), ?purpose, "certificate not renewed; trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(3600));
            }
        }
    }
}

/// What is left of a certificate's life; `None` if it cannot be read.
pub(super) fn left(pem: &str) -> Option<Duration> {
    let (_, end) = life(pem)?;
    Some(end.duration_since(SystemTime::now()).unwrap_or_default())
}

fn current(place: &Place, purpose: Purpose) -> String {
    let name = match purpose {
        Purpose::Client => "client.pem",
        Purpose::Serving => "serving.pem",
    };
    std::fs::read_to_string(place.file(name)).unwrap_or_default()
}

/// Time until `share` of the life is over; none for a certificate that cannot be read.
fn nap(pem: &str, now: SystemTime, share: f64) -> Duration {
    let Some((start, end)) = life(pem) else { return Duration::ZERO };
    let whole = end.duration_since(start).unwrap_or_default();
    let due = start + whole.mul_f64(share);
    due.duration_since(now).unwrap_or_default()
}

fn life(pem: &str) -> Option<(SystemTime, SystemTime)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, cert) = X509Certificate::from_der(&der).ok()?;
    let validity = cert.validity();
    let time = |t: i64| UNIX_EPOCH + Duration::from_secs(t.max(0).unsigned_abs());
    Some((time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn naps_until_the_share_is_over() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 11);
        let pem = params.self_signed(&key).unwrap().pem();
        let start = life(&pem).unwrap().0;
        let day = Duration::from_secs(86_400);
        assert_eq!(nap(&pem, start, 0.8), day * 8);
        assert_eq!(nap(&pem, start + day * 9, 0.8), Duration::ZERO);
        assert_eq!(nap("none", start, 0.8), Duration::ZERO);
        assert!(left(&pem).unwrap() > day);
    }
}
