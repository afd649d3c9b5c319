//! What the programs are told beside tables: by configuration, and when it changes.

use std::net::{IpAddr, Ipv4Addr};

use sluice_ebpf_common::{Address, Settings};

use crate::dataplane::{Config, Dataplane};
use crate::limits::SOURCE_PORTS;
use crate::range::{Range, wire};
use crate::store::processors;
use crate::{Error, object, sys};

/// The settings by configuration; what the configuration does not know yet stays as an earlier process left it.
pub(crate) fn by(config: &Config, earlier: Settings) -> Result<Settings, Error> {
    let mut settings = Settings {
        node_port_first: *config.node_ports.start(),
        node_port_last: *config.node_ports.end(),
        source_port_first: *SOURCE_PORTS.start(),
        source_port_last: *SOURCE_PORTS.end(),
        host_cookie: sys::netns_cookie()
            .map_err(|error| Error::Kernel(format!("a network namespace has no cookie: {error}")))?,
        processors: processors()? as u32,
        // What an earlier process cached was decided by its programs.
        epoch: earlier.epoch.wrapping_add(1),
        cache_mask: object::buckets(processors()? as u32) - 1,
        // Between two thirds and four thirds of a second.
        tick_shift: (sys::timer_rate() * 2 / 3).max(1).ilog2() + 1,
        flags: earlier.flags & !Settings::FOLLOWED,
        ..earlier
    };
    let own = |v4: bool| config.node_addresses.iter().find(|address| address.is_ipv4() == v4).copied();
    settings.families[0].node = wire(own(true).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    settings.families[1].node = own(false).map_or_else(Address::default, wire);
    if let Some(pods) = config.pod_range {
        set_ranges(&mut settings, pods, config.cluster_range.unwrap_or(pods));
    }
    Ok(settings)
}

pub(crate) fn set_ranges(settings: &mut Settings, pods: Range, cluster: Range) {
    let family = &mut settings.families[usize::from(!pods.is_ipv4())];
    (family.pod_network, family.pod_mask) = pods.wire();
    (family.cluster_network, family.cluster_mask) = cluster.wire();
}

impl Dataplane {
    /// Writes the settings anew if they change.
    pub(crate) fn change_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<(), Error> {
        let mut guard = self.inner.settings.lock();
        let (settings, map) = &mut *guard;
        let before = *settings;
        change(settings);
        if *settings == before {
            return Ok(());
        }
        map.set(0, *settings, 0).map_err(|error| Error::ebpf("write the settings", error))
    }

    /// Lets programs forget what they keep of decisions.
    pub(crate) fn ask_anew(&self) -> Result<(), Error> {
        self.change_settings(|settings| settings.epoch = settings.epoch.wrapping_add(1))
    }
}
