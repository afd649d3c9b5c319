#!/bin/sh
# Stands in for cargo in the book's test: tasks run as they were built for it, and labs on the debug build.
[ "$1" = xtask ] || exit 1
shift
if [ "$1" = lab ]; then
    case "$2" in
    kill | partition | heal | exec) ;;
    *) set -- "$@" --binary @TARGET@/debug/sluice ;;
    esac
fi
exec @TARGET@/debug/xtask "$@"
