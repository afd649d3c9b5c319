#!/bin/sh
# The story at the end of `vagrant up`, on the first server: prints what holds, and fails with the first thing that does not.
# Without words it is the story of the Services. The other parts stand around what story.sh does from outside: `load` and
# `unload WHEN` around requests that must not fail, `upgrade` on each machine, `before NAME` and `after NAME` around a loss of
# power of that machine; `end` removes what the story made.
set -eu
export KUBECONFIG=/var/lib/sluice/admin.kubeconfig
samples=/usr/share/sluice/samples
kept=/var/lib/lab-smoke
# Emulated machines are slow, so the limits only end what would never come.
limit=900

says() {
    echo "holds: $1"
}

fails() {
    echo "does not hold: $1"
    cat /tmp/smoke.out
    kubectl get nodes,pods,services -A -o wide || true
    exit 1
}

holds() {
    what=$1
    shift
    "$@" >/tmp/smoke.out 2>&1 || fails "$what"
    says "$what"
}

# What need not hold at once: asked again until the limit.
soon() {
    what=$1
    shift
    end=$(($(date +%s) + limit))
    until "$@" >/tmp/smoke.out 2>&1; do
        [ "$(date +%s)" -lt $end ] || fails "$what"
        sleep 1
    done
}

comes() {
    soon "$@"
    says "$1"
}

nodes() {
    kubectl get nodes -o "jsonpath={.items[*].$1}"
}

# In the DaemonSet's pod on a node. Its name is kept until it does not answer: every kubectl takes seconds under emulation.
on() {
    known=/run/lab-smoke.$1
    [ -s "$known" ] || kubectl get pods -l app=everywhere --field-selector "spec.nodeName=$1" \
        -o 'jsonpath={.items[0].metadata.name}' >"$known"
    shift
    kubectl exec "$(cat "$known")" -- "$@" || {
        rm -f "$known"
        return 1
    }
}

all_ready() {
    kubectl wait --for=condition=Ready node --all --timeout=10s
}

# From a pod: every pod of the Service answers by its name.
every_pod_answers() {
    on "$1" /echo get http://echo.default.svc.cluster.local/ --distinct 3
}

from_outside() {
    curl -sSf --max-time 10 "http://$1/"
}

# As a datagram, which the shell of Debian can send by itself.
by_udp() {
    bash -c 'exec 3<>/dev/udp/$1/$2 && echo hello >&3 && timeout 10 head -c 1 <&3 | grep -q .' - "$1" "$2"
}

# The answer's second line is the caller as the pod sees it.
sees_the_caller() {
    from_outside "$1" >/tmp/smoke.answer
    grep -F "$2" /tmp/smoke.answer || { cat /tmp/smoke.answer; return 1; }
}

addresses_of() {
    found=$(on "$1" nslookup "$2.default.svc.cluster.local" | sed '1,/^Name/d' | grep -c '^Address' || true)
    [ "$((found + 0))" -ge "$3" ] || { echo "$found addresses"; on "$1" nslookup "$2.default.svc.cluster.local"; return 1; }
}

front_address() {
    kubectl get service front -o 'jsonpath={.status.loadBalancer.ingress[0].ip}' | grep .
}

boot_of() {
    kubectl get node "$1" -o 'jsonpath={.status.nodeInfo.bootID}' 2>/dev/null
}

was_started_anew() {
    boot=$(boot_of "$1")
    [ -n "$boot" ] && [ "$boot" != "$(cat $kept/boot)" ]
}

services() {
    first=$(nodes metadata.name | cut -d' ' -f1)
    lan=$(nodes 'status.addresses[0].address' | cut -d' ' -f1)
    lan=${lan%.*}
    comes "all $(kubectl get nodes -o name | wc -l) nodes are Ready" all_ready
    sed "s/@LAN@/$lan/g" <<'LIST' | kubectl apply -f - >/dev/null
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      containers:
        - {name: main, image: "sluice.local/echo:latest", imagePullPolicy: IfNotPresent}
---
apiVersion: sluice.dev/v1
kind: LoadBalancerPool
metadata: {name: lab}
spec:
  blocks: [{start: @LAN@.200, stop: @LAN@.203}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: echo}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{name: udp, port: 80, targetPort: udp, protocol: UDP, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: everywhere}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30082}]
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {type: LoadBalancer, selector: {app: echo}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: echo.default.svc.cluster.local}
LIST
    kubectl apply -f $samples/echo.yaml >/dev/null
    holds "three pods run" kubectl rollout status deployment/echo --timeout=${limit}s
    holds "a pod runs on every node" kubectl rollout status daemonset/everywhere --timeout=${limit}s
    names=$(nodes metadata.name)
    addresses=$(nodes 'status.addresses[0].address')
    for node in $names; do
        comes "ClusterIP: the pod on $node asks by name, and every pod answers" every_pod_answers "$node"
        comes "headless: the pod on $node is told the addresses of three pods" addresses_of "$node" headless 3
        comes "ExternalName: the pod on $node is led on to echo" on "$node" /echo get http://elsewhere/
    done
    for address in $addresses; do
        comes "NodePort: $address answers from outside" from_outside "$address:30080"
        comes "NodePort: $address answers datagrams from outside" by_udp "$address" 30081
        comes "NodePort: $address answers a pod" on "$first" /echo get "http://$address:30080/"
        # This machine may be the node itself, and is nobody from outside then.
        ip -o route get "$address" | grep -q '^local' ||
            comes "NodePort, Local: $address sees who asks" sees_the_caller "$address:30082" "$(caller_for "$address")"
    done
    comes "LoadBalancer: it has an address" front_address
    front=$(front_address)
    comes "LoadBalancer: $front answers from outside" from_outside "$front"
    for node in $names; do
        comes "LoadBalancer: $front answers the pod on $node" on "$node" /echo get "http://$front/"
    done
    load echo
    kubectl rollout restart deployment/echo >/dev/null
    holds "a rolling update ends" kubectl rollout status deployment/echo --timeout=${limit}s
    unload "in a rolling update"
}

# This machine's own address on the way to another one.
caller_for() {
    ip -o route get "$1" | sed 's/.* src \([0-9.]*\).*/\1/'
}

# Asks the Service by the name or address in $1, in the pod, so that it goes on while the control plane is away. Until `unload`,
# or until a request fails.
load() {
    asks='i=0; while [ ! -e /tmp/stop ]; do /echo get http://'$1'/ >/tmp/answer 2>&1 || { cat /tmp/answer; break; }; i=$((i+1)); done; echo $i requests'
    node=$(nodes metadata.name | cut -d' ' -f1)
    on "$node" sh -c "rm -f /tmp/stop /tmp/load; ($asks) >/tmp/load 2>&1 &"
}

unload() {
    node=$(nodes metadata.name | cut -d' ' -f1)
    soon "the pod with the load can be asked" on "$node" touch /tmp/stop
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        on "$node" cat /tmp/load >/tmp/smoke.out
        ! grep -q 'requests$' /tmp/smoke.out || break
        sleep 1
    done
    asked=$(cat /tmp/smoke.out)
    # One line is the count alone: no error came before it.
    case $asked in
    "0 requests" | *[!0-9]*" requests") fails "no request failed $1" ;;
    *" requests") says "no request failed $1 ($asked)" ;;
    *) fails "no request failed $1" ;;
    esac
}

# On any machine: the package is installed over itself, as an upgrade is, and what ran runs anew; pods stay.
upgrade() {
    unit=$(systemctl list-units --plain --no-legend --state=active 'sluice*.service' | cut -d' ' -f1)
    [ -n "$unit" ] || return 0
    old=$(systemctl show --property MainPID --value "$unit")
    shims=$(pgrep -f containerd-shim | sort)
    holds "$(hostname): the package is upgraded" apt-get install -y -q --reinstall /var/cache/lab/sluice.deb
    holds "$(hostname): $unit runs" systemctl is-active "$unit"
    [ "$(systemctl show --property MainPID --value "$unit")" != "$old" ] || fails "$(hostname): $unit runs anew"
    [ "$(pgrep -f containerd-shim | sort)" = "$shims" ] || fails "$(hostname): its pods are those before"
    says "$(hostname): it runs anew, and its pods are those before"
    systemctl stop "$unit"
    [ "$(pgrep -f containerd-shim | sort)" = "$shims" ] || fails "$(hostname): pods outlive the stopped $unit"
    holds "$(hostname): pods outlive the stopped $unit, which starts again" systemctl start "$unit"
}

before() {
    mkdir -p $kept
    boot_of "$1" >$kept/boot || true
    # The control plane alone: requests of pods do without it.
    [ -s $kept/boot ] || load echo
}

after() {
    comes "after a loss of power of $1: the API answers" kubectl get --raw /readyz
    if [ -n "$(cat $kept/boot)" ]; then
        comes "after a loss of power of $1: the node says that it was started anew" was_started_anew "$1"
    else
        unload "while $1 was without power"
    fi
    comes "after a loss of power of $1: all nodes are Ready" all_ready
    for node in $(nodes metadata.name); do
        comes "after a loss of power of $1: the pod on $node reaches every pod of the Service" every_pod_answers "$node"
    done
    for address in $(nodes 'status.addresses[0].address'); do
        comes "after a loss of power of $1: the node port at $address answers from outside" from_outside "$address:30080"
    done
    comes "after a loss of power of $1: the load balancer answers from outside" \
        from_outside "$(front_address)"
}

case "${1-}" in
"") services ;;
# By its address: names are the daemon's to answer, and wait while it starts anew.
load) load "$(kubectl get service echo -o 'jsonpath={.spec.clusterIP}')" ;;
unload) unload "$2" ;;
upgrade) upgrade ;;
before) before "$2" ;;
after) after "$2" ;;
end)
    kubectl delete daemonset/everywhere service/headless service/outside service/here service/front service/elsewhere \
        loadbalancerpool/lab >/dev/null
    rm -rf $kept /run/lab-smoke.*
    echo "all of it holds"
    ;;
esac
