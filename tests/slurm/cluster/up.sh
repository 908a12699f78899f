#!/usr/bin/env bash
# Start a throw-away Slurm cluster on this machine, as root, without systemd. Takes about two seconds.
#
#   up.sh DIR [--nodes N] [--cpus C] [--gpus G]
#
# --gpus: pretended GPUs a node (default 2), so that --gres=gpu:2 or --gpus-per-node=2 is taken,
# counted and queued for.
#
# Every "machine" (head, node1..nodeN) is a set of Linux namespaces: own network (a cable to a switch
# inside head's namespace), own hostname, own process table, own /etc/hosts and /dev/shm. No packet
# can leave: no namespace has a route out, and the host's network is not touched. Needs CAP_SYS_ADMIN
# and CAP_NET_ADMIN.
#
# What it leaves in DIR:
#   on NAME CMD...  run CMD on a machine; sbatch, squeue and the like belong on "head"
#   env.sh          SLURM_CONF and the rest, for `. env.sh`
#   slurm.conf, log/, state/, spool/, pids
# down.sh ends everything, by recorded process id only; node.sh crashes and boots single nodes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
dir=$1 nodes=2 cpus=4 gpus=2
requeue_wait=5 # seconds that a requeued job waits, and that a message may take; Slurm: 120
shift
while [ $# -gt 0 ]; do
  case $1 in
    --nodes) nodes=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    *) die "unknown argument $1" ;;
  esac
done
[ "$(id -u)" = 0 ] || die "must be root"
for c in munged slurmctld slurmd sbatch ip unshare nsenter; do
  command -v $c >/dev/null || die "$c not found; run make test-slurm"
done
[ ! -e "$dir/pids" ] || die "$dir/pids exists: already up, or run down.sh first"
mkdir -p "$dir"/{log,state,spool,munge,etc}
dir=$(cd "$dir" && pwd)
[ ${#dir} -lt 80 ] || die "$dir is too long for a unix socket"
rm -rf "$dir"/state/* "$dir"/spool/* "$dir"/log/*
chmod 755 "$dir" "$dir/munge" # munged wants its socket's folders open to all; the key is 0600
: > "$dir/pids"
t0=$(date +%s%N)
lap() { echo "up.sh: $(( ($(date +%s%N) - t0) / 1000000 )) ms: $*"; }
trap 'rc=$?; [ $rc = 0 ] || { echo "up.sh: failed; logs:"; tail -n 15 "$dir"/log/*.log; "$here/down.sh" "$dir" || true; }' EXIT

# ---------------------------------------------------------------- machines
names=$(seq -f 'node%g' 1 "$nodes")
for n in $names; do mkdir -p "$dir/spool/$n"; done
{ echo "127.0.0.1 localhost"
  echo "$subnet.1 head"
  for i in $(seq "$nodes"); do echo "$subnet.$((10 + i)) node$i"; done; } > "$dir/etc/hosts"
machine head
inside head ip link add br0 type bridge
inside head ip addr add "$subnet.1/24" dev br0
inside head ip link set br0 up
for i in $(seq "$nodes"); do machine "node$i"; plug "node$i" "$i"; done
lap "namespaces for head" $names

# ---------------------------------------------------------------- configuration
cat > "$dir/slurm.conf" <<CONF
ClusterName=throwaway
SlurmctldHost=head
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again (default 120 s)
AuthInfo=socket=$dir/munge/socket,cred_expire=$requeue_wait
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/spool/slurmctld.pid
SlurmdPidFile=$dir/spool/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
# no cgroups, no CPU binding, no accounting database
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
# CPUs and memory as written here, whatever the hardware has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
# fast enough for tests
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
KillWait=10
InactiveLimit=0
MinJobAge=86400
JobRequeue=1
JobFileAppend=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# a preempted job first gets the signal of its own --signal (22.05 does not know PreemptParameters=send_user_signal)
SlurmctldParameters=preempt_send_user_signal
MailProg=/bin/true
PropagateResourceLimits=NONE
CONF
gres=; [ "$gpus" = 0 ] || gres="Gres=gpu:$gpus"
echo "AutoDetect=off" > "$dir/gres.conf" # to Slurm a GPU is a device file, and /dev/null's twins will do
[ "$gpus" = 0 ] || for i in $(seq 0 $((gpus - 1))); do
  [ -e "$dir/etc/nvidia$i" ] || mknod "$dir/etc/nvidia$i" c 1 3
  echo "Name=gpu File=$dir/etc/nvidia$i" >> "$dir/gres.conf"
done
for i in $(seq "$nodes"); do
  echo "NodeName=node$i CPUs=$cpus RealMemory=4000 $gres State=UNKNOWN"
done >> "$dir/slurm.conf"
cat >> "$dir/slurm.conf" <<CONF
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=10
# a job in 'spot' is requeued when 'main' needs its nodes, GraceTime seconds after it was told
PartitionName=spot Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
CONF
echo "export SLURM_CONF=$dir/slurm.conf" > "$dir/env.sh"
cat > "$dir/on" <<'ON'
#!/usr/bin/env bash
# on NAME CMD...: run CMD on one machine of the cluster
dir=$(cd "$(dirname "$0")" && pwd); . "$dir/env.sh"
name=$1; shift
exec nsenter -t "$(cat "$dir/etc/$name.pid")" -n -u -i -m -p --wd="$PWD" -- "$@"
ON
chmod +x "$dir/on"
. "$dir/env.sh"

# ---------------------------------------------------------------- daemons
key=$dir/munge/key
[ -e "$key" ] || (umask 077; head -c 1024 /dev/urandom > "$key")
# munge speaks through a unix socket, which network namespaces do not separate: one daemon serves all
setsid munged --foreground --key-file="$key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
  --seed-file="$dir/munge/seed" --log-file="$dir/munge/log" </dev/null >"$dir/log/munged.log" 2>&1 &
record "$!" munged; disown
for _ in $(seq 100); do [ -S "$dir/munge/socket" ] && break; sleep 0.05; done
munge --socket="$dir/munge/socket" -n | unmunge --socket="$dir/munge/socket" >/dev/null || die "munge does not answer"
lap "munged"
launch head slurmctld slurmctld -D -c -f "$SLURM_CONF"
for n in $names; do launch "$n" "slurmd-$n" slurmd -D -N "$n" -f "$SLURM_CONF"; done
for _ in $(seq 150); do
  ready=$("$dir/on" head sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l || true)
  [ "$ready" = "$nodes" ] && break
  ! grep -hE ': fatal:' "$dir"/log/slurm*.out.log >&2 || die "a daemon refused to start"
  sleep 0.2
done
[ "$ready" = "$nodes" ] || { "$dir/on" head sinfo -N -l || true; "$dir/on" head sinfo -R || true; die "only $ready of $nodes nodes are idle"; }
lap "slurmctld and $nodes slurmd: all nodes idle"
"$dir/on" head sinfo
