#!/bin/sh
# What ends `vagrant up`, on the machine that runs Vagrant: the smoke story on the first server, and then each machine of the
# lab loses its power and comes back. The first word is that server, the others are all machines.
set -eu
first=$1
shift

smoke() {
    vagrant ssh "$first" -c "sudo lab-smoke $*"
}

smoke
for machine in "$@"; do
    smoke before "$machine"
    echo "cutting the power of $machine"
    # --force pulls the plug: nothing is shut down.
    vagrant reload --force --no-provision "$machine"
    smoke after "$machine"
done
smoke end
