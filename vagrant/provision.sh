#!/bin/sh
# Makes a machine of a lab what its roles say. Run again it changes nothing that is right.
set -eu
export DEBIAN_FRONTEND=noninteractive

echo "$HOSTS" | tr ';' '\n' | while read -r line; do
    grep -qxF "$line" /etc/hosts || echo "$line" >>/etc/hosts
done

has() {
    case " $ROLES " in *" $1 "*) ;; *) return 1 ;; esac
}

# The box brings these; another one gets them from its distribution.
needed="curl iproute2"
! has etcd || needed="$needed etcd-server"
missing=
for package in $needed; do
    dpkg-query -W "$package" >/dev/null 2>&1 || missing="$missing $package"
done
if [ -n "$missing" ]; then
    apt-get update -q
    # shellcheck disable=SC2086
    apt-get install -y -q --no-install-recommends $missing
fi
# Where a loss of power does not take them.
install -m 0755 /tmp/smoke.sh /usr/local/sbin/lab-smoke
install -D -m 0644 /tmp/sluice.deb /var/cache/lab/sluice.deb
if [ "$ROLES" = client ]; then
    exit 0
fi

if has etcd; then
    cat >/etc/default/etcd <<EOF
ETCD_NAME=$HOST
ETCD_DATA_DIR=/var/lib/etcd/lab
ETCD_LISTEN_CLIENT_URLS=http://$ADDRESS:2379
ETCD_ADVERTISE_CLIENT_URLS=http://$ADDRESS:2379
ETCD_LISTEN_PEER_URLS=http://$ADDRESS:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://$ADDRESS:2380
ETCD_INITIAL_CLUSTER=$MEMBERS
ETCD_INITIAL_CLUSTER_TOKEN=sluice-lab
EOF
    # A member is ready when most of them are: the first one waits for the second.
    systemctl enable etcd
    systemctl restart --no-block etcd
    exit 0
fi

apt-get install -y -q /tmp/sluice.deb
settings=/etc/sluice/sluice.yaml
grep -q '^nodeIp:' $settings || echo "nodeIp: $ADDRESS" >>$settings
if [ -n "$ETCD" ] && has server && ! grep -q '^etcd:' $settings; then
    echo "etcd: [$(echo "$ETCD" | sed 's/ /, /g')]" >>$settings
fi
if [ -e /tmp/pki.tar ] && [ ! -e /var/lib/sluice/pki ]; then
    mkdir -p /var/lib/sluice
    tar -C /var/lib/sluice -xf /tmp/pki.tar
fi
if has node && ! grep -q '^token:' $settings; then
    cat /tmp/join.yaml >>$settings
fi

for role in up server node; do
    has $role || continue
    unit=sluice-$role
    [ $role != up ] || unit=sluice
    systemctl enable --now $unit
done
if [ "$FIRST" = true ]; then
    flags=
    for server in $SERVERS; do
        flags="$flags --server $server"
    done
    # shellcheck disable=SC2086
    sluice token create --output config $flags >/root/join.yaml
fi
if has up || has node; then
    sluice image import /usr/share/sluice/samples/echo.tar
fi
rm -f /tmp/pki.tar /tmp/join.yaml
