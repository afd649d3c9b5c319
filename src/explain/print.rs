//! An explanation as text: a paragraph for each place that the packet comes by, a line for each decision. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use sluice_dataplane::End;
use sluice_dataplane::explain::{Answer, Because, Choice, Decision, Ends, Fate, Known, Step};

use super::Report;

const LABEL: usize = 12;

pub(super) fn text(report: &Report) -> String {
    let Report { source, destination, explanation, notes } = report;
    let existing = if explanation.existing { ", an open connection" } else { "" };
    let mut out =
        format!("{source} to {destination} over {}{existing}: {}\n", explanation.protocol, ends(&explanation.asked));
    for step in &explanation.steps {
        out.push('\n');
        paragraph(&mut out, step);
    }
    out.push('\n');
    out.push_str(&fate(&explanation.fate));
    out.extend(explanation.answer.as_ref().map(|answer| answered(answer, &explanation.asked)));
    for (word, lines) in [("note", notes), ("WARNING", &explanation.warnings)] {
        lines.iter().for_each(|line| add(&mut out, word, line));
    }
    out
}

/// Writing to a String cannot fail.
fn add(out: &mut String, label: &str, line: &str) {
    let _ = writeln!(out, "  {label:<LABEL$} {line}");
}

fn paragraph(out: &mut String, step: &Step) {
    let known = match step.known {
        Known::Run => "",
        Known::RunDiffers => " (the kernel's result differs from what is decided below)",
        Known::Computed => " (computed from the live tables: the kernel runs this program for sockets only)",
        Known::Asked => "",
    };
    let link = step.link.as_deref().map_or_else(String::new, |link| format!(" on {link}"));
    let program = step.program.map_or_else(String::new, |id| format!(", program {id}"));
    let place = match step.at {
        "connect" => "at connect(2), in the cgroup",
        "route" => "the node's routes",
        "pod_in" => "what a pod sends: pod_in",
        "policy_in" => "what policies say of it: policy_in",
        "policy_out" => "what policies say of what comes to a pod: policy_out",
        "pod_out" => "what goes to a pod: pod_out",
        "uplink_xdp" => "what comes from outside, in the driver: uplink_xdp",
        "uplink_onward" => "what comes from outside, before all else: uplink_onward",
        "uplink_in" => "what comes from outside: uplink_in",
        "own_out" => "what the node itself sends by SCTP: own_out",
        "own_in" => "what Services answer the node itself: own_in",
        "uplink_out" => "what leaves the node: uplink_out",
        other => other,
    };
    let answer = if step.answer { "the answer, " } else { "" };
    let _ = writeln!(out, "{answer}{place}{link}{program}{known}");
    if step.decisions.is_empty() {
        add(out, "unchanged", "nothing is to be done here");
    }
    for decision in &step.decisions {
        let (label, line) = said(decision);
        add(out, label, &line);
    }
}

fn said(decision: &Decision) -> (&'static str, String) {
    match decision {
        Decision::NotAService { address } => ("service", format!("none has {}", at(*address))),
        Decision::Service { service, address, scope, backends, draining, local_only, affinity_seconds } => {
            let mut line = format!("{service} has {}", at(*address));
            if *scope == "external" {
                line.push_str(" for packets from outside");
            }
            let _ = match backends {
                0 => write!(line, "; no backend takes new connections"),
                1 => write!(line, "; one backend takes new connections"),
                several => write!(line, "; {several} backends take new connections"),
            };
            if *draining > 0 {
                let _ = write!(line, ", {draining} only keep theirs");
            }
            if *local_only {
                line.push_str("; this node's alone, by its traffic policy");
            }
            if *affinity_seconds > 0 {
                let _ = write!(line, "; clients keep theirs for {affinity_seconds} s");
            }
            ("service", line)
        }
        Decision::SourceRanges { client, admitted: true } => ("clients", format!("{client} is in its source ranges")),
        Decision::SourceRanges { client, .. } => ("clients", format!("{client} is in none of its source ranges")),
        Decision::Connection { translation, to, idle_seconds } => {
            let what = match *translation {
                "service" => "is known, and goes to",
                "answer" => "is known: this is an answer, which comes from",
                "masquerade" => "is known, and leaves with",
                _ => "is known: this is an answer, which goes to",
            };
            ("connection", format!("{what} {} (last packet {idle_seconds} s ago)", at(*to)))
        }
        Decision::Affinity { kept: Some(kept) } => ("affinity", format!("the client keeps {}", at(*kept))),
        Decision::Affinity { kept: None } => ("affinity", "the client keeps no backend yet".into()),
        Decision::Backend { address, pod, local, choice, of } => {
            let pod = pod.as_deref().map_or_else(String::new, |pod| format!(", pod {pod}"));
            let place = if *local { "on this node" } else { "elsewhere" };
            ("backend", format!("{}{pod}, {place}: {}", at(*address), chosen(*choice, *of)))
        }
        Decision::Translated { end, from, to } => ("translation", format!("{end} {} becomes {}", at(*from), at(*to))),
        Decision::NeedsSource => {
            ("way back", "answers have to come by this node: the source will become its own address".into())
        }
        Decision::Unmasqueraded { destination } => {
            ("source", format!("stays the pod's own towards {destination} (nonMasqueradeCidr)"))
        }
        Decision::Policy { .. } => ("policy", policy(decision)),
        Decision::Straight { link } => ("way", format!("straight into the pod behind {link}, past the node's stack")),
        Decision::Onward { link, gateway } => {
            ("way", format!("leaves at once by {link}{}, past the node's stack", via(*gateway)))
        }
        Decision::Stack => ("way", "to the link's other programs and the node's stack".into()),
        Decision::Carried { source, destination } => {
            ("carried", format!("inside a packet from {source} to {destination}, whose node answers the client itself"))
        }
        Decision::Route { kind: "here", .. } => ("route", "to the node itself".into()),
        Decision::Route { link: Some(link), gateway, .. } => ("route", format!("by {link}{}", via(*gateway))),
        Decision::Route { why, .. } => ("route", format!("nowhere: {}", why.as_deref().unwrap_or("no route"))),
        Decision::Tunnel { kind, node } => {
            let node = node.map_or_else(String::new, |node| format!(" to the node {node}"));
            ("tunnel", format!("inside a {kind} packet{node}"))
        }
        Decision::Counted { reason } => ("counted as", (*reason).into()),
    }
}

fn chosen(choice: Choice, of: u32) -> String {
    match choice {
        Choice::Random if of > 1 => format!("one of {of}, this time this one"),
        Choice::Random => "the only one".into(),
        Choice::Table => format!("one of {of}, the same on every node for these ends"),
        Choice::Affinity => "the client's own".into(),
        Choice::Connection => "the connection's own".into(),
    }
}

fn policy(decision: &Decision) -> String {
    let Decision::Policy { direction, pod, peer, allowed, because, set, identity, block, holding, allowing, denying } =
        decision
    else {
        return String::new();
    };
    let who = match (identity, block) {
        (0, 0) => format!("{peer} is nobody that policies name"),
        (identity, 0) => format!("{peer} is known to policies as {identity}"),
        (0, block) => format!("{peer} is in the block {block}"),
        (identity, block) => format!("{peer} is known to policies as {identity}, and in the block {block}"),
    };
    let named = |names: &[String]| if names.is_empty() { String::new() } else { format!(": {}", names.join("; ")) };
    let (selecting, allowing) = (named(holding), named(allowing));
    match (because, allowed) {
        (Because::NoPolicy, _) => format!("none holds for {pod} in this direction ({direction})"),
        (Because::NeverJudged, _) => "a node and its own pods, and a pod and itself, are never judged".into(),
        (Because::Remembered, _) => {
            format!("{direction} of {pod} was allowed before, and nothing has changed{allowing}")
        }
        (Because::Everybody, _) => format!("{direction} of {pod} is allowed for everybody, by set {set}{allowing}"),
        (Because::Pods, _) => format!("{direction} of {pod} is allowed by set {set}, as {who}{allowing}"),
        (Because::Block, _) => format!("{direction} of {pod} is allowed by set {set}, as {who}{allowing}"),
        (Because::Closed, _) => {
            format!("{direction} of {pod} is closed until the node knows the pod's policies from the API")
        }
        (Because::Denied, _) => {
            let by = match (denying.is_empty(), holding.is_empty()) {
                (false, _) => named(denying),
                (true, false) => format!(": no rule allows it of those that hold{selecting}"),
                (true, true) => String::new(),
            };
            format!("{direction} of {pod} is DENIED by set {set}, as {who}{by}")
        }
        (Because::NoRule, _) => {
            let of = if holding.is_empty() { String::new() } else { format!(", which policies make{selecting}") };
            format!("{direction} of {pod} is DENIED: {who}, and no rule of set {set} allows it{of}")
        }
    }
}

fn fate(fate: &Fate) -> String {
    match fate {
        Fate::Delivered { to, seen_as, pod, link } => {
            let whom = match (pod, link) {
                (Some(pod), _) => format!("the pod {pod}"),
                (None, Some(link)) => format!("the pod behind {link}"),
                (None, None) => "this node itself".into(),
            };
            format!("=> DELIVERED to {whom} at {}, which sees {}\n", at(*to), at(*seen_as))
        }
        Fate::Leaves { to, seen_as, link, gateway, inside_to } => {
            let inside = inside_to.map_or_else(String::new, |to| format!(", inside a packet to {to}"));
            format!("=> LEAVES this node by {link}{}{inside}, from {} to {}\n", via(*gateway), at(*seen_as), at(*to))
        }
        Fate::Refused { reason, text, advice } => format!("=> REFUSED ({reason}): {text}\n   {advice}\n"),
        Fate::Dropped { reason, text, advice } => format!("=> DROPPED ({reason}): {text}\n   {advice}\n"),
        Fate::Unreachable { text, advice } => format!("=> UNREACHABLE: {text}\n   {advice}\n"),
    }
}

fn answered(answer: &Answer, asked: &Ends) -> String {
    match &answer.fate {
        Fate::Delivered { to, seen_as, .. } | Fate::Leaves { to, seen_as, .. } if answer.fits => {
            let as_asked = (*to, *seen_as) == (asked.source, asked.destination);
            let socket = if as_asked { "" } else { ", where the socket takes it for one from the Service" };
            format!("   answers come back from {} to {}{socket}\n", at(*seen_as), at(*to))
        }
        Fate::Delivered { to, seen_as, .. } | Fate::Leaves { to, seen_as, .. } => format!(
            "   ANSWERS DO NOT FIT: they come from {} to {}, and the sender does not take them for answers\n",
            at(*seen_as),
            at(*to)
        ),
        lost => format!("   ANSWERS ARE LOST {}", fate(lost)),
    }
}

fn via(gateway: Option<IpAddr>) -> String {
    gateway.map_or_else(String::new, |gateway| format!(" to {gateway}"))
}

fn ends(ends: &Ends) -> String {
    format!("{} > {}", at(ends.source), at(ends.destination))
}

fn at(end: End) -> String {
    SocketAddr::new(end.address, end.port).to_string()
}

#[cfg(test)]
mod tests {
    use sluice_dataplane::explain::Explanation;

    use super::*;

    fn end(text: &str) -> End {
        let end: SocketAddr = text.parse().unwrap_or_else(|_| panic!("{text}"));
        End { address: end.ip(), port: end.port() }
    }

    fn between(source: &str, destination: &str) -> Ends {
        Ends { source: end(source), destination: end(destination) }
    }

    fn report() -> Report {
        let (asked, after) =
            (between("10.244.0.5:40000", "10.96.0.10:80"), between("10.244.0.5:40000", "10.244.9.5:8080"));
        let step = |at, known, before, after, decisions| Step {
            at,
            link: (at != "connect" && at != "route").then(|| "slca".to_owned()),
            program: None,
            known,
            answer: false,
            before,
            after,
            decisions,
        };
        let policy = Decision::Policy {
            direction: "egress",
            pod: after.source.address,
            peer: after.destination.address,
            allowed: false,
            because: Because::NoRule,
            set: 7,
            identity: 12,
            block: 0,
            holding: vec!["shop/quiet".into()],
            allowing: vec![],
            denying: vec![],
        };
        let service = Decision::Service {
            service: "shop/web:http".into(),
            address: asked.destination,
            scope: "internal",
            backends: 3,
            draining: 1,
            local_only: false,
            affinity_seconds: 0,
        };
        let backend = Decision::Backend {
            address: after.destination,
            pod: Some("shop/web-1".into()),
            local: false,
            choice: Choice::Random,
            of: 3,
        };
        let translated = Decision::Translated { end: "destination", from: asked.destination, to: after.destination };
        Report {
            source: "pod shop/client".into(),
            destination: "service shop/web:80".into(),
            explanation: Explanation {
                protocol: "TCP",
                asked,
                existing: false,
                steps: vec![
                    step("connect", Known::Computed, asked, Some(after), vec![service, backend, translated]),
                    step("pod_in", Known::Run, after, Some(after), vec![]),
                    step("policy_in", Known::RunDiffers, after, None, vec![policy]),
                ],
                answer: None,
                fate: Fate::Dropped { reason: "PolicyEgress", text: "no policy allows it", advice: "add a rule" },
                warnings: vec!["take care".into()],
            },
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn an_explanation_reads_from_top_to_bottom() {
        let expected = "\
pod shop/client to service shop/web:80 over TCP: 10.244.0.5:40000 > 10.96.0.10:80

at connect(2), in the cgroup (computed from the live tables: the kernel runs this program for sockets only)
  service      shop/web:http has 10.96.0.10:80; 3 backends take new connections, 1 only keep theirs
  backend      10.244.9.5:8080, pod shop/web-1, elsewhere: one of 3, this time this one
  translation  destination 10.96.0.10:80 becomes 10.244.9.5:8080

what a pod sends: pod_in on slca
  unchanged    nothing is to be done here

what policies say of it: policy_in on slca (the kernel's result differs from what is decided below)
  policy       egress of 10.244.0.5 is DENIED: 10.244.9.5 is known to policies as 12, and no rule of set 7 allows it, which \
policies make: shop/quiet

=> DROPPED (PolicyEgress): no policy allows it
   add a rule
  note         a note
  WARNING      take care
";
        assert_eq!(text(&report()), expected);
    }

    #[test]
    fn json_says_the_same_by_fixed_names() {
        let json = serde_json::to_value(report()).unwrap_or_default();
        assert_eq!(json["source"], "pod shop/client");
        assert_eq!(json["asked"]["destination"], serde_json::json!({"address": "10.96.0.10", "port": 80}));
        assert_eq!(json["steps"][0]["known"], "computed");
        assert_eq!(json["steps"][0]["decisions"][1]["about"], "backend");
        assert_eq!(json["steps"][0]["decisions"][1]["choice"], "random");
        assert_eq!(json["steps"][2]["decisions"][0]["because"], "noRule");
        assert_eq!((&json["fate"]["outcome"], &json["fate"]["reason"]), (&"dropped".into(), &"PolicyEgress".into()));
    }
}
