//! The times of a cron schedule in its zone. Pure.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::limits;

/// A schedule in a zone.
#[derive(Debug)]
pub(super) struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// What is wrong with a schedule.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    /// The zone is not known.
    #[error("invalid timeZone: {0:?}: {1}")]
    Zone(String, String),
    /// The schedule cannot be read.
    #[error("unparseable schedule: {0:?} : {1}")]
    Schedule(String, String),
}

/// Start times that have passed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// The last one.
    pub(super) last: Timestamp,
    /// So many that something must have been wrong.
    pub(super) many: bool,
}

impl Schedule {
    /// Reads five fields or `@hourly` and the like; the zone is UTC unless named.
    pub(super) fn parse(text: &str, zone: Option<&str>) -> Result<Self, Wrong> {
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|error| Wrong::Zone(name.into(), error.to_string()))?,
        };
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| Wrong::Schedule(text.into(), error.to_string()))?;
        Ok(Self { cron, zone })
    }

    /// The first time after `at`; `None` when there is none.
    pub(super) fn after(&self, at: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&at.to_zoned(self.zone.clone()), false).ok()?;
        Some(next.timestamp())
    }

    /// The last time after `from` and not after `now`, if there is one.
    pub(super) fn passed(&self, from: Timestamp, now: Timestamp) -> Option<Passed> {
        let first = self.after(from).filter(|first| *first <= now)?;
        let Some(second) = self.after(first).filter(|second| *second <= now) else {
            return Some(Passed { last: first, many: false });
        };
        let step = second.duration_since(first).as_secs().max(1);
        let estimated = now.duration_since(first).as_secs() / step + 1;
        let many = estimated > i64::try_from(limits::CRON_STARTS).unwrap_or(i64::MAX);
        // The last one, from behind: however many there are between.
        let last = self.cron.find_previous_occurrence(&now.to_zoned(self.zone.clone()), true).ok()?.timestamp();
        Some(Passed { last: last.max(first), many })
    }

    /// How long until the first time after `now`, and a moment more so that the clock is past it.
    pub(super) fn wait(&self, now: Timestamp) -> Option<Duration> {
        let left = self.after(now)?.duration_since(now).unsigned_abs();
        Some(left + Duration::from_millis(100))
    }

    /// A time as the zone writes it, in RFC 3339.
    pub(super) fn local(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned(self.zone.clone());
        match zoned.offset().seconds() {
            0 => format!("{at:.0}"),
            _ => zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        }
    }
}
