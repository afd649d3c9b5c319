//! Whether this machine's clock agrees with the API servers': by the date of their answers, or, where it is so far off that
//! their certificates seem not valid yet or no longer, by these. Nothing is asked for it but by [`told`].

use std::{
    error::Error as StdError,
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
};

use http::HeaderMap;
use jiff::Timestamp;
use kube::client::Body;
use rustls::CertificateError;

use crate::limits;

/// A clock that is further off than [`limits::CLOCK_SKEW`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Off {
    /// In seconds; positive when this machine's clock is ahead.
    apart: i64,
    theirs: Timestamp,
}

impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.apart > 0 { "ahead of" } else { "behind" };
        // Whole seconds are compared: a day less one is a day.
        let (minutes, theirs) = ((self.apart.unsigned_abs() + 30) / 60, self.theirs);
        write!(
            f,
            "this machine's clock is {minutes} minutes {side} the server's, where it is {theirs}: set it (timedatectl \
             set-ntp true)"
        )
    }
}

impl StdError for Off {}

/// Compares this machine's clock with the date of a server's answer. A server that does not say what time it has is
/// believed.
pub(super) fn in_step(headers: &HeaderMap, now: Timestamp) -> Result<(), Off> {
    let date = headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
    let Some(theirs) = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()) else { return Ok(()) };
    let theirs = theirs.timestamp();
    let apart = now.as_second() - theirs.as_second();
    if apart.unsigned_abs() > limits::CLOCK_SKEW.as_secs() { Err(Off { apart, theirs }) } else { Ok(()) }
}

/// What a server's answer, or its failure, tells of the clock; each change is news once.
#[derive(Default)]
pub(super) struct Clock(AtomicBool);

impl Clock {
    /// What to say after an answer, if that changed.
    pub(super) fn answered(&self, headers: &HeaderMap, now: Timestamp) -> Option<Result<(), String>> {
        let told = in_step(headers, now);
        (self.0.swap(told.is_err(), Ordering::Relaxed) != told.is_err()).then(|| told.map_err(|off| off.to_string()))
    }

    /// What to say of a failure, if it is the clock's and not said yet.
    pub(super) fn failed(&self, error: &(dyn StdError + 'static), now: Timestamp) -> Option<String> {
        let why = dated(error)?;
        let news = !self.0.swap(true, Ordering::Relaxed);
        news.then(|| format!("{why} by this machine's clock, where it is {now}: set it (timedatectl set-ntp true)"))
    }
}

/// How a server's certificate seems dated, when that is what a request failed by.
fn dated(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An IO error hides what it holds from `source`.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error.downcast_ref().or_else(|| held.and_then(|held| held.downcast_ref()));
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return match why {
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Some("the API server's certificate is not valid yet")
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Some("the API server's certificate has expired")
                }
                _ => None,
            };
        }
        next = held.map(|held| held as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

/// Asks a server for nothing but an answer, believing no certificate: what is said of it, or why it is of no use.
///
/// # Errors
/// When it does not answer, or when this machine's clock is off.
pub(super) async fn told(server: &str) -> anyhow::Result<()> {
    let mut config = kube::Config::new(server.parse()?);
    // The clock may be what makes certificates seem wrong; nothing secret is sent.
    config.accept_invalid_certs = true;
    config.connect_timeout = Some(limits::SERVER_CONNECT);
    let request = http::Request::get("/version").body(Body::empty())?;
    let response = kube::Client::try_from(config)?.send(request).await?;
    Ok(in_step(response.headers(), Timestamp::now())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dated_at(date: &str) -> HeaderMap {
        [(http::header::DATE, date.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn a_clock_off_by_a_day_is_said_once_and_taken_back() {
        let clock = Clock::default();
        let headers = dated_at("Sun, 06 Nov 1994 08:49:37 GMT");
        let at = |now: &str| clock.answered(&headers, now.parse().unwrap());
        assert_eq!(at("1994-11-06T08:49:00Z"), None);
        assert_eq!(at("1994-11-06T08:54:00Z"), None);
        let said = at("1994-11-07T08:49:37Z").unwrap().unwrap_err();
        assert!(said.contains("1440 minutes ahead of the server's, where it is 1994-11-06T08:49:37Z"), "{said}");
        assert_eq!(at("1994-11-07T08:49:38Z"), None);
        assert_eq!(at("1994-11-06T08:50:00Z"), Some(Ok(())));
        let said = at("1994-11-05T08:49:38Z").unwrap().unwrap_err();
        assert!(said.contains("1440 minutes behind the server's"), "{said}");
        assert_eq!(in_step(&HeaderMap::new(), Timestamp::now()), Ok(()));
    }

    #[test]
    fn a_certificate_that_seems_too_new_is_the_clocks_fault() {
        let tls = |why: CertificateError| {
            let inside = io::Error::other(rustls::Error::InvalidCertificate(why));
            io::Error::other(inside)
        };
        let now: Timestamp = "1994-11-05T08:49:37Z".parse().unwrap();
        let clock = Clock::default();
        assert_eq!(clock.failed(&tls(CertificateError::UnknownIssuer), now), None);
        assert_eq!(clock.failed(&io::Error::other("connection refused"), now), None);
        let said = clock.failed(&tls(CertificateError::NotValidYet), now).unwrap();
        assert!(said.contains("is not valid yet by this machine's clock, where it is 1994-11-05T08:49:37Z"), "{said}");
        assert_eq!(clock.failed(&tls(CertificateError::NotValidYet), now), None, "it has been said");
        assert!(Clock::default().failed(&tls(CertificateError::Expired), now).unwrap().contains("has expired"));
    }
}
