//! Queues of uplinks that hold packets until they are to leave (`fq`). Only where the kernel's own queue was: what an
//! administrator chose stays. The number that ours have is the only record of whose they are.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};

use crate::netlink::Netlink;

/// Below those that the kernel gives out by itself.
const OURS: u16 = 0x51ce;
const FAIR: &str = "fq";
const MANY: &str = "mq";
/// `TCA_FQ_FLOW_PLIMIT`: packets of one connection that may wait. All that may wait at all, as a pod may have but one.
const EACH: u16 = 2;
const WAITING: u32 = 10_000;

/// A queue of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) kind: String,
    pub(crate) handle: TcHandle,
    pub(crate) parent: TcHandle,
}

/// What a link's queues have to become, so that packets leave when they are to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: they do.
    Holds,
    /// One is put in the place of the kernel's.
    Whole,
    /// A link with a queue for each of the card's gets them anew, under a number by which they can be reached.
    Divide,
    /// These of them are put in the place of the kernel's.
    Parts(Vec<TcHandle>),
    /// Somebody chose a queue of this kind.
    Foreign(String),
}

/// Pure.
pub(crate) fn step(rows: &[Row]) -> Step {
    let Some(root) = rows.iter().find(|row| row.parent == TcHandle::ROOT) else { return Step::Whole };
    let parts = || rows.iter().filter(|row| row.parent.major == root.handle.major && row.parent != TcHandle::ROOT);
    match root.kind.as_str() {
        FAIR => Step::Holds,
        MANY if parts().count() > 0 && parts().all(|part| part.kind == FAIR) => Step::Holds,
        MANY if root.handle.major == 0 => Step::Divide,
        MANY => match parts().find(|part| part.kind != FAIR && part.handle.major != 0) {
            Some(foreign) => Step::Foreign(foreign.kind.clone()),
            None if root.handle.major == OURS => {
                Step::Parts(parts().filter(|part| part.kind != FAIR).map(|part| part.parent).collect())
            }
            None => Step::Foreign(MANY.into()),
        },
        _ if root.handle.major == 0 => Step::Whole,
        kind => Step::Foreign(kind.into()),
    }
}

/// The queues of the namespace of the thread that opened it.
pub(crate) struct Queues(Netlink);

impl Queues {
    pub(crate) fn open() -> io::Result<Queues> {
        Netlink::open().map(Queues)
    }

    /// Makes a link hold packets until they are to leave. Returns the kind of queue that somebody chose instead.
    pub(crate) fn hold(&self, link: u32) -> io::Result<Option<String>> {
        let own = TcHandle { major: OURS, minor: 0 };
        // Whole; or divided and then each part.
        for _ in 0..3 {
            match step(&self.rows(link)?) {
                Step::Holds => return Ok(None),
                Step::Foreign(kind) => return Ok(Some(kind)),
                Step::Whole => self.put(link, FAIR, TcHandle::ROOT, own)?,
                Step::Divide => {
                    // Without the kind the link would lose its queues for nothing.
                    self.put(link, FAIR, TcHandle::ROOT, own)?;
                    self.take_back(link)?;
                    self.put(link, MANY, TcHandle::ROOT, own)?;
                }
                Step::Parts(parts) => {
                    for part in parts {
                        self.put(link, FAIR, part, TcHandle::default())?;
                    }
                }
            }
        }
        Ok(Some("one that somebody else keeps changing".into()))
    }

    /// The kind of queue that a link has in place of one that holds packets.
    pub(crate) fn lacks(&self, link: u32) -> io::Result<Option<String>> {
        let rows = self.rows(link)?;
        let root = rows.iter().find(|row| row.parent == TcHandle::ROOT);
        Ok((step(&rows) != Step::Holds).then(|| root.map_or_else(|| "none".into(), |root| root.kind.clone())))
    }

    /// Gives a link the kernel's queue back, if it has ours.
    pub(crate) fn take_back(&self, link: u32) -> io::Result<()> {
        let rows = self.rows(link)?;
        if !rows.iter().any(|row| row.parent == TcHandle::ROOT && row.handle.major == OURS) {
            return Ok(());
        }
        let mut message = TcMessage::with_index(i32::try_from(link).unwrap_or_default());
        message.header.parent = TcHandle::ROOT;
        self.0.ask(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK, |_| {})
    }

    fn rows(&self, link: u32) -> io::Result<Vec<Row>> {
        let mut rows = Vec::new();
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        self.0.ask(request, NLM_F_DUMP, |message| {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { return };
            let kind = message.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind.clone()),
                _ => None,
            });
            if u32::try_from(message.header.index) == Ok(link) {
                let (handle, parent) = (message.header.handle, message.header.parent);
                rows.push(Row { kind: kind.unwrap_or_default(), handle, parent });
            }
        })?;
        Ok(rows)
    }

    fn put(&self, link: u32, kind: &str, parent: TcHandle, handle: TcHandle) -> io::Result<()> {
        let mut message = TcMessage::with_index(i32::try_from(link).unwrap_or_default());
        (message.header.parent, message.header.handle) = (parent, handle);
        message.attributes = vec![TcAttribute::Kind(kind.into())];
        if kind == FAIR {
            let each = TcOption::Other(DefaultNla::new(EACH, WAITING.to_ne_bytes().to_vec()));
            message.attributes.push(TcAttribute::Options(vec![each]));
        }
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.0.ask(RouteNetlinkMessage::NewQueueDiscipline(message), flags, |_| {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str, [handle, parent, minor]: [u16; 3]) -> Row {
        let parent = if parent == u16::MAX { TcHandle::ROOT } else { TcHandle { major: parent, minor } };
        Row { kind: kind.into(), handle: TcHandle { major: handle, minor: 0 }, parent }
    }

    #[test]
    fn the_kernels_own_queues_alone_are_replaced() {
        const ROOT: u16 = u16::MAX;
        let part = |minor| TcHandle { major: OURS, minor };
        let foreign = |kind: &str| Step::Foreign(kind.into());
        for (rows, expected) in [
            (vec![], Step::Whole),
            (vec![row("noqueue", [0, ROOT, 0])], Step::Whole),
            (vec![row("fq_codel", [0, ROOT, 0])], Step::Whole),
            // By the name of the kernel's choice, which is such a queue.
            (vec![row("fq", [0, ROOT, 0])], Step::Holds),
            (vec![row("fq", [OURS, ROOT, 0])], Step::Holds),
            (vec![row("fq", [0x8001, ROOT, 0])], Step::Holds),
            (vec![row("tbf", [0x8001, ROOT, 0])], foreign("tbf")),
            (vec![row("fq_codel", [0x8001, ROOT, 0])], foreign("fq_codel")),
            (vec![row("clsact", [0xffff, 0xffff - 1, 0]), row("pfifo_fast", [0, ROOT, 0])], Step::Whole),
            (vec![row("mq", [0, ROOT, 0]), row("pfifo_fast", [0, 0, 1])], Step::Divide),
            (vec![row("mq", [0, ROOT, 0]), row("fq", [0, 0, 1]), row("fq", [0, 0, 2])], Step::Holds),
            (
                vec![row("mq", [OURS, ROOT, 0]), row("pfifo_fast", [0, OURS, 1]), row("fq", [0x8002, OURS, 2])],
                Step::Parts(vec![part(1)]),
            ),
            (vec![row("mq", [OURS, ROOT, 0]), row("fq", [0x8001, OURS, 1])], Step::Holds),
            (vec![row("mq", [OURS, ROOT, 0]), row("cake", [0x8001, OURS, 1])], foreign("cake")),
            (vec![row("mq", [0x8001, ROOT, 0]), row("pfifo_fast", [0, 0x8001, 1])], foreign("mq")),
        ] {
            assert_eq!(step(&rows), expected, "{rows:?}");
        }
    }
}
