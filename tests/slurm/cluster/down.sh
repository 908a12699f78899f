#!/usr/bin/env bash
# Stop what up.sh started: first through Slurm itself, then by the recorded process ids only.
#   down.sh DIR
. "$(dirname "$0")/lib.sh"
dir=$1
[ -e "$dir/pids" ] || { echo "down.sh: nothing is up in $dir"; exit 0; }
dir=$(cd "$dir" && pwd)
left() { local id begun tag; while read -r id begun tag; do alive "$id" "$begun" && echo "$id:$tag"; done < "$dir/pids"; }
if [ -x "$dir/on" ]; then
  { timeout 10 "$dir/on" head scancel --user=root; timeout 10 "$dir/on" head scontrol shutdown; } 2>/dev/null
  for _ in $(seq 25); do left | grep -q ':slurm' || break; sleep 0.2; done
fi
for tag in $(cut -d' ' -f3 "$dir/pids" | tac); do
  case $tag in machine:*) stop "$tag" KILL ;; *) stop "$tag" TERM ;; esac
done
for _ in $(seq 25); do [ -z "$(left)" ] && break; sleep 0.2; done
for l in $(left); do echo "down.sh: had to KILL $l"; kill -KILL "${l%%:*}"; done
rm -f "$dir/pids" "$dir"/etc/*.pid "$dir"/etc/*.ready
echo "down.sh: all stopped"
