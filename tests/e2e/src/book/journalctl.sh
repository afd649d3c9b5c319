#!/bin/sh
# Stands in for journalctl: what the stand-in for systemctl has kept of a unit's output.
lines=+1
while [ $# -gt 0 ]; do
    case $1 in
    -u) unit=$2 && shift ;;
    -n) lines=$2 && shift ;;
    esac
    shift
done
tail -n "$lines" "/var/log/$unit.log"
