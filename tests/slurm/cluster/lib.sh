# Shared by up.sh, down.sh and node.sh. Sets nothing up by itself.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
subnet=10.77.0

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# One line per process in DIR/pids: id, start time (so that a reused id is never taken for ours), name.
started() { { sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20; } 2>/dev/null; }
alive() { local now; now=$(started "$1"); [ -n "$now" ] && [ "$now" = "$2" ] && [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1)" != Z ]; }
record() { echo "$1 $(started "$1") $2" >> "$dir/pids"; }

# A machine is one `unshare` whose child is process 1 of a new process table, with a network, hostname,
# /etc/hosts and /dev/shm of its own; when the `unshare` dies the kernel ends everything inside.
machine() { # NAME
  local name=$1 up
  rm -f "$dir/etc/$name.ready"
  setsid unshare --net --uts --ipc --mount --pid --fork --mount-proc --kill-child=KILL \
    bash -c 'set -e
      hostname "$1"; ip link set lo up
      mount --bind "$2/etc/hosts" /etc/hosts
      mount -t tmpfs -o size=1g tmpfs /dev/shm
      : > "$2/etc/$1.ready"
      while :; do sleep 3600 & wait $!; done' machine "$name" "$dir" \
    </dev/null >>"$dir/log/$name.machine.log" 2>&1 &
  up=$!; disown
  record "$up" "machine:$name"
  for _ in $(seq 100); do [ -e "$dir/etc/$name.ready" ] && break; sleep 0.05; done
  [ -e "$dir/etc/$name.ready" ] || die "no namespaces here? see $dir/log/$name.machine.log"
  tr -d ' ' < "/proc/$up/task/$up/children" > "$dir/etc/$name.pid"
}
inside() { local name=$1; shift; nsenter -t "$(cat "$dir/etc/$name.pid")" -n -u -i -m -p -- "$@"; }

plug() { # NAME NUMBER: a cable from machine NAME to head's switch
  local name=$1
  nsenter -t "$(cat "$dir/etc/head.pid")" -n -- \
    ip link add "to-$name" type veth peer name eth0 netns "$(cat "$dir/etc/$name.pid")"
  inside head ip link set "to-$name" master br0 up
  inside "$name" ip addr add "$subnet.$((10 + $2))/24" dev eth0
  inside "$name" ip link set eth0 up
}

launch() { # NAME TAG DAEMON ARGS...
  local where=$1 tag=$2; shift 2
  setsid "$dir/on" "$where" "$@" </dev/null >>"$dir/log/$tag.out.log" 2>&1 &
  record "$!" "$tag"; disown
}

stop() { # TAG SIGNAL: end the processes recorded under TAG
  local id begun tag
  while read -r id begun tag; do
    [ "$tag" = "$1" ] && alive "$id" "$begun" && kill -"$2" "$id"
  done < "$dir/pids"
  return 0
}
