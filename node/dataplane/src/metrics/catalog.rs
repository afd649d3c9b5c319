//! The table of this crate's metrics. `docs/metrics.md` says the same for people.

use sluice_metrics::Metric;

const SERVICE: &[&str] = &["namespace", "service", "port", "protocol"];
const TCP_SERVICE: &[&str] = &["namespace", "service", "port"];
const POD: &[&str] = &["namespace", "pod"];
const BACKEND: &[&str] = &["backend"];
const MAP: &[&str] = &["map"];

macro_rules! metrics {
    ($($name:ident = $kind:ident($text:literal, $labels:expr, $help:literal);)*) => {
        $(pub(crate) const $name: Metric = Metric::$kind($text, $labels, $help);)*

        /// Every metric that the data plane writes.
        pub const METRICS: &[&Metric] = &[$(&$name,)*];
    };
}

metrics! {
    SERVICE_CONNECTIONS = counter("sluice_service_connections_total", SERVICE,
        "Connections, and first datagrams of sockets, that were sent to a backend of the Service's port.");
    SERVICE_PACKETS = counter("sluice_service_packets_total", SERVICE,
        "Packets that were translated one by one for the Service's port, both directions.");
    SERVICE_BYTES = counter("sluice_service_bytes_total", SERVICE,
        "Bytes of the packets that were translated one by one for the Service's port.");
    SERVICE_REFUSED = counter("sluice_service_refused_connections_total", SERVICE,
        "Connections to the Service's port that nobody could answer.");
    SERVICE_ACTIVE = gauge("sluice_service_active_connections", SERVICE,
        "Connections to the Service's port that are translated packet by packet and whose client has not closed them.");
    SERVICE_BACKENDS = gauge("sluice_service_backends", SERVICE,
        "Backends of the Service's port that take new connections.");
    SERVICE_BACKEND = gauge("sluice_service_backend", &["namespace", "service", "port", "protocol", "backend", "local"],
        "1 for each backend of a Service's port, to join the figures of backends with Services.");
    BACKEND_CONNECTIONS = counter("sluice_backend_connections_total", BACKEND,
        "Connections, and first datagrams of sockets, that were sent to the backend.");
    BACKEND_PACKETS = counter("sluice_backend_packets_total", BACKEND,
        "Packets to and from the backend that were translated one by one.");
    BACKEND_BYTES = counter("sluice_backend_bytes_total", BACKEND,
        "Bytes of the packets to and from the backend that were translated one by one.");
    BACKEND_ACTIVE = gauge("sluice_backend_active_connections", BACKEND,
        "Connections to the backend that are translated packet by packet and whose client has not closed them.");
    MERGED = gauge("sluice_metrics_merged_rows", &["of"],
        "Services, backends and pods beyond the limit of series, whose figures stand under the name other.");
    DROPPED = counter("sluice_dropped_packets_total", &["by", "reason"],
        "Packets that were dropped on this machine, by who dropped them and why.");
    NOTED = counter("sluice_noted_events_total", &["reason"],
        "What the programs did other than usual without losing a packet.");
    KERNEL_REASONS = gauge("sluice_kernel_drop_reasons_known", &[],
        "1 when this kernel tells why it drops packets, else 0.");
    FLOWS = gauge("sluice_flows", &["of"],
        "Connections in the flow table: those to services and those that leave the cluster with the node's address.");
    MAP_ENTRIES = gauge("sluice_map_entries", MAP, "Entries in use of a map.");
    MAP_LIMIT = gauge("sluice_map_entries_limit", MAP, "Entries that a map takes until it grows.");
    MAP_BOUND = gauge("sluice_map_entries_bound", MAP, "Entries that a map may ever take on this machine.");
    PORTS = gauge("sluice_masquerade_ports", &[],
        "Ports for connections that leave with the node's address, towards each remote end.");
    PORTS_USED = gauge("sluice_masquerade_ports_used", &[],
        "Ports that connections which leave with the node's address have, over all remote ends.");
    PORTS_LEFT = gauge("sluice_masquerade_ports_left", &[],
        "Ports that are left towards the remote end to which most are taken.");
    POLICY_PODS = gauge("sluice_policy_isolated_pods", &["direction"],
        "Pods of this node that a network policy holds for.");
    POLICY_DENIED = counter("sluice_policy_denied_packets_total", &["direction"],
        "Packets that no network policy allowed.");
    POLICY_ALLOWED = gauge("sluice_policy_allowed_connections", &["direction"],
        "Connections of isolated pods that are remembered as allowed; the least recently used ones are forgotten.");
    PACED = gauge("sluice_paced_pods", &[], "Pods whose egress limit is kept by departure times.");
    SERVICE_TCP_CONNECT = histogram("sluice_service_tcp_connect_duration_seconds", TCP_SERVICE,
        "From the first SYN to the answer, of connections that sockets of this node and its pods to the Service opened.");
    SERVICE_TCP_ROUND_TRIP = histogram("sluice_service_tcp_round_trip_time_seconds", TCP_SERVICE,
        "The smoothed round-trip time at the end of each connection of sockets of this node and its pods to the Service.");
    SERVICE_TCP_FAILED = counter("sluice_service_tcp_failed_connections_total", TCP_SERVICE,
        "Connections that sockets of this node and its pods to the Service asked for in vain.");
    SERVICE_TCP_CLOSED = counter("sluice_service_tcp_closed_connections_total", TCP_SERVICE,
        "Connections of sockets of this node and its pods to the Service that ended.");
    SERVICE_TCP_RETRANSMITS = counter("sluice_service_tcp_retransmitted_segments_total", TCP_SERVICE,
        "Segments that were sent again on connections of sockets of this node and its pods to the Service, SYNs included.");
    SERVICE_TCP_SYN_RETRANSMITS = counter("sluice_service_tcp_retransmitted_syns_total", TCP_SERVICE,
        "SYNs that were sent again for connections of sockets of this node and its pods to the Service.");
    SERVICE_TCP_RESETS_RECEIVED = counter("sluice_service_tcp_received_resets_total", TCP_SERVICE,
        "Resets that came for connections of sockets of this node and its pods to the Service.");
    SERVICE_TCP_RESETS_SENT = counter("sluice_service_tcp_sent_resets_total", TCP_SERVICE,
        "Resets that were sent for connections of sockets of this node and its pods to the Service.");
    SERVICE_TCP_SENT = counter("sluice_service_tcp_sent_bytes_total", TCP_SERVICE,
        "Payload that was acknowledged by the other end, of connections of sockets of this node and its pods to the Service that ended.");
    SERVICE_TCP_RECEIVED = counter("sluice_service_tcp_received_bytes_total", TCP_SERVICE,
        "Payload that came, of connections of sockets of this node and its pods to the Service that ended.");
    POD_TCP_CONNECT = histogram("sluice_pod_tcp_connect_duration_seconds", POD,
        "From the first SYN to the answer, of connections that the pod's sockets opened.");
    POD_TCP_ROUND_TRIP = histogram("sluice_pod_tcp_round_trip_time_seconds", POD,
        "The smoothed round-trip time at the end of each connection of the pod's sockets.");
    POD_TCP_ACCEPTED = counter("sluice_pod_tcp_accepted_connections_total", POD,
        "Connections that the pod's sockets took.");
    POD_TCP_FAILED = counter("sluice_pod_tcp_failed_connections_total", POD,
        "Connections that the pod's sockets asked for in vain.");
    POD_TCP_CLOSED = counter("sluice_pod_tcp_closed_connections_total", POD,
        "Connections of the pod's sockets that ended.");
    POD_TCP_RETRANSMITS = counter("sluice_pod_tcp_retransmitted_segments_total", POD,
        "Segments that were sent again on connections of the pod's sockets, SYNs included.");
    POD_TCP_SYN_RETRANSMITS = counter("sluice_pod_tcp_retransmitted_syns_total", POD,
        "SYNs that were sent again for connections of the pod's sockets.");
    POD_TCP_RESETS_RECEIVED = counter("sluice_pod_tcp_received_resets_total", POD,
        "Resets that came for connections of the pod's sockets.");
    POD_TCP_RESETS_SENT = counter("sluice_pod_tcp_sent_resets_total", POD,
        "Resets that were sent for connections of the pod's sockets.");
    POD_TCP_SENT = counter("sluice_pod_tcp_sent_bytes_total", POD,
        "Payload that was acknowledged by the other end, of connections of the pod's sockets that ended.");
    POD_TCP_RECEIVED = counter("sluice_pod_tcp_received_bytes_total", POD,
        "Payload that came, of connections of the pod's sockets that ended.");
    UNPLACED = counter("sluice_probe_unplaced_figures_total", &[],
        "Figures of TCP connections that were counted under other, for want of a seat of their own.");
    PROBES = gauge("sluice_probe_attached", &["probe"],
        "1 for each probe program that runs, 0 for each that this kernel does not take.");
    PROBE_MISSES = counter("sluice_probe_missed_runs_total", &["probe"],
        "Runs that the kernel left out as the program was interrupted by itself.");
    TOLD = counter("sluice_flow_events_total", &["of"],
        "Events about connections that were told to those who follow them.");
    UNTOLD = counter("sluice_flow_events_lost_total", &["of", "why"],
        "Events about connections that were not told, while somebody followed them.");
    FOLLOWERS = gauge("sluice_flow_followers", &[], "Those who follow connections of this node.");
    SYNC = histogram("kubeproxy_sync_proxy_rules_duration_seconds", &[],
        "How long one pass of compiled changes took to be written into the kernel's maps.");
    PROGRAMMING = histogram("kubeproxy_network_programming_duration_seconds", &[],
        "From when a Service was made or a pod's readiness changed until the maps say so.");
    SYNC_LAST = gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &[],
        "When the maps were last written without a failure.");
    SYNC_QUEUED = gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", &[],
        "When a change that has to be written was last seen.");
    NO_LOCAL = gauge("kubeproxy_sync_proxy_rules_no_local_endpoints_total", &["traffic_policy"],
        "Ports of Services whose traffic policy is Local and whose endpoints are all on other nodes.");
    SERVICE_CHANGES = counter("kubeproxy_sync_proxy_rules_service_changes_total", &[],
        "Events about Services that were seen.");
    SERVICE_PENDING = gauge("kubeproxy_sync_proxy_rules_service_changes_pending", &[],
        "Events about Services that wait for the next pass.");
    ENDPOINT_CHANGES = counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", &[],
        "Events about EndpointSlices that were seen.");
    ENDPOINT_PENDING = gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", &[],
        "Events about EndpointSlices that wait for the next pass.");
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_follow_the_conventions() {
        assert_eq!(sluice_metrics::lint(super::METRICS), Vec::<String>::new());
    }
}
