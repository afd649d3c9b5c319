#!/bin/sh
# What ends `vagrant up`, on the machine that runs Vagrant: the smoke story on the first server, an upgrade of each machine
# under load, and then each of them loses its power and comes back. The first word is that server, the others are all machines.
set -eu
first=$1
shift

on() {
    vagrant ssh "$1" -c "sudo lab-smoke $2"
}

smoke() {
    on "$first" "$*"
}

smoke
smoke load
for machine in "$@"; do
    on "$machine" upgrade
done
smoke unload "'while the package of every machine was upgraded'"
for machine in "$@"; do
    smoke before "$machine"
    echo "cutting the power of $machine"
    # --force pulls the plug: nothing is shut down.
    vagrant reload --force --no-provision "$machine"
    smoke after "$machine"
done
smoke end
