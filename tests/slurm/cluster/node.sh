#!/usr/bin/env bash
# node.sh crash|boot NAME DIR: pull the plug of one machine, or start it again
set -euo pipefail
. "$(dirname "$0")/lib.sh"
dir=$(cd "$3" && pwd); . "$dir/env.sh"
case $1 in
  crash) stop "machine:$2" KILL ;; # takes the cable, slurmd and all tasks with it
  boot)
    machine "$2"; plug "$2" "${2#node}"
    launch "$2" "slurmd-$2" slurmd -D -N "$2" -f "$SLURM_CONF" ;;
  *) die "crash or boot?" ;;
esac
