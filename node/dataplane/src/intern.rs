//! Equal texts kept once: namespaces, services and nodes are named by thousands of objects. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::{ObjectName, Pod, Service, Slice};

/// Texts that are in use.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    all: HashSet<Arc<str>>,
    /// When there are so many, those that nobody uses any more go.
    full: usize,
}

/// Texts that are kept before anybody looks which of them are used.
const LEAST: usize = 1_024;

impl Texts {
    /// Makes a text one with its equals.
    pub(crate) fn share(&mut self, text: &mut Arc<str>) {
        if let Some(known) = self.all.get(&**text) {
            text.clone_from(known);
            return;
        }
        if self.all.len() >= self.full {
            self.all.retain(|known| Arc::strong_count(known) > 1);
            self.full = (self.all.len() * 2).max(LEAST);
        }
        self.all.insert(text.clone());
    }

    pub(crate) fn share_name(&mut self, name: &mut ObjectName) {
        self.share(&mut name.0);
        self.share(&mut name.1);
    }
}

/// What is kept for long: its texts are shared and nothing in it has memory to spare.
pub(crate) trait Compact {
    fn compact(&mut self, texts: &mut Texts);
}

impl Compact for Service {
    fn compact(&mut self, texts: &mut Texts) {
        self.ports.iter_mut().for_each(|port| texts.share(&mut port.name));
        self.ports.shrink_to_fit();
        self.cluster.shrink_to_fit();
        self.external.shrink_to_fit();
        self.balancers.shrink_to_fit();
        self.ranges.shrink_to_fit();
    }
}

impl Compact for Slice {
    fn compact(&mut self, texts: &mut Texts) {
        texts.share(&mut self.service);
        self.ports.iter_mut().for_each(|port| texts.share(&mut port.name));
        self.ports.shrink_to_fit();
        for endpoint in &mut self.endpoints {
            let places = [&mut endpoint.node, &mut endpoint.zone].into_iter().flatten();
            places.chain(&mut endpoint.for_zones).chain(&mut endpoint.for_nodes).for_each(|text| texts.share(text));
        }
        self.endpoints.shrink_to_fit();
    }
}

impl Compact for Pod {
    fn compact(&mut self, _: &mut Texts) {
        self.addresses.shrink_to_fit();
        self.ports.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_unused_ones_go() {
        let mut texts = Texts::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("node".into(), "node".into());
        texts.share(&mut a);
        texts.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for number in 0..10 * LEAST {
            texts.share(&mut number.to_string().into());
        }
        assert!(texts.all.len() <= LEAST, "{}", texts.all.len());
        let mut c: Arc<str> = "node".into();
        texts.share(&mut c);
        assert!(Arc::ptr_eq(&a, &c));
    }
}
