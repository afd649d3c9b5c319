//! Lines of `sluice flows --follow` for people.

use sluice_dataplane::{FlowEvent, Party};

use super::text;

/// Above the lines.
pub(super) const HEADER: &str = "TIME         NODE             EVENT    PROTO SOURCE                         DESTINATION                    DETAILS";

/// One event on one line.
pub(super) fn line(event: &FlowEvent) -> String {
    // The time of day, to the millisecond, in UTC.
    let milliseconds = event.time.as_millisecond().rem_euclid(86_400_000);
    let (seconds, rest) = (milliseconds / 1_000, milliseconds % 1_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let mut text =
        format!("{hours:02}:{minutes:02}:{seconds:02}.{rest:03} {:<16} {:<8}", event.node, event.event.name());
    if let Some(lost) = event.lost {
        let why = event.reason.as_deref().unwrap_or_default();
        return format!("{text} {lost} events were not told: {}", lost_text(why));
    }
    text += &format!(
        " {:<5} {:<30} {:<30} {}",
        event.protocol.as_deref().unwrap_or("-"),
        party(event.source.as_ref()),
        party(event.destination.as_ref()),
        details(event)
    );
    text.trim_end().to_owned()
}

fn lost_text(why: &str) -> &str {
    match why {
        "rate" => "they came faster than events are told",
        "ring" => "the ring between kernel and daemon was full",
        "table" => "there are too many connections to look at each of them",
        "reader" => "they were read too slowly",
        other => other,
    }
}

fn details(event: &FlowEvent) -> String {
    let figures = &event.figures;
    let mut parts = Vec::new();
    if let Some(service) = &event.service {
        parts.push(service.clone());
    }
    if let Some(backend) = &event.backend {
        parts.push(format!("-> {}", party(Some(backend))));
    }
    if let Some(end) = event.leaves_as {
        parts.push(format!("as {}", text(end)));
    }
    if let Some(text) = event.text.as_ref().or(event.reason.as_ref()) {
        parts.push(text.clone());
    }
    if let (Some(bytes), Some(answers)) = (figures.bytes, figures.answer_bytes) {
        parts.push(format!("{bytes} B / {answers} B"));
    }
    if let Some(took) = figures.connect_microseconds {
        parts.push(format!("connected in {took} µs"));
    }
    if let Some(took) = figures.round_trip_microseconds {
        parts.push(format!("round trip {took} µs"));
    }
    parts.join(" ")
}

fn party(party: Option<&Party>) -> String {
    let Some(party) = party else { return "-".to_owned() };
    match &party.pod {
        Some(pod) => format!("{pod}:{}", party.end.port),
        None => text(party.end),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let first = r#"{"time":"2026-01-02T03:04:05.678912345Z","node":"n1","event":"first","verdict":"forwarded","seenBy":"client",
            "protocol":"TCP","source":{"address":"10.244.0.5","port":4000,"pod":"shop/web-1"},
            "destination":{"address":"10.96.0.10","port":80},"service":"store/db:main",
            "backend":{"address":"10.244.1.7","port":8080},"connectMicroseconds":120}"#;
        let lost = r#"{"time":"2026-01-02T03:04:05Z","node":"n1","event":"lost","reason":"rate","lost":12}"#;
        let cases = [
            (
                first,
                "03:04:05.678 n1               first    TCP   shop/web-1:4000                10.96.0.10:80                  \
                 store/db:main -> 10.244.1.7:8080 connected in 120 µs",
            ),
            (
                lost,
                "03:04:05.000 n1               lost     12 events were not told: they came faster than events are told",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(line(&serde_json::from_str(json).unwrap()), expected);
        }
    }
}
