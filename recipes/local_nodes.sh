#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, a sweep on it, and nothing left behind:
#   NODES=2 CPUS=4 GPUS=0 recipes/local_nodes.sh --preset digits --gpus 0 --out runs/local
# NODES are started beside a head that runs no trials; CPUS and GPUS are of each node.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
ray=${RAY:-ray}
port=${PORT:-$((20000 + $$ % 12000))}
address="127.0.0.1:$port"
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled} RAY_USAGE_STATS_ENABLED=0
temporary=$(mktemp -d /tmp/hsakd-nodes-XXXXXX)  # short: Ray's sockets lie in it
export NODE_LOG="$temporary/nodes.log" RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # nothing runs any more when nodes are told to stop
nodes=()
driver=
is_told=
start_seconds=1200

stop_nodes() {
    for node in "${nodes[@]}"; do kill -TERM "$node" 2>/dev/null || true; done
    for node in "${nodes[@]}"; do wait "$node" 2>/dev/null || true; done
    for _ in $(seq 50); do rm -rf "$temporary" 2>/dev/null && break; sleep 0.2; done  # a node's last processes may still write
}
trap stop_nodes EXIT
trap 'is_told=yes; [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null || true' INT TERM

# setsid: a signal to this script's group (Ctrl-C, timeout) reaches the driver once, through the trap, and the nodes after it has ended
start_node() {
    setsid "$here/recipes/ray_node.sh" --node-ip-address 127.0.0.1 --object-store-memory $((100 * 1024 * 1024)) "$@" &
    nodes+=("$!")
}

start_node --head --port "$port" --num-cpus 0 --num-gpus 0 --include-dashboard false --temp-dir "$temporary/ray"
until "$ray" status --address "$address" 2>/dev/null | grep -q ' node_'; do
    kill -0 "${nodes[0]}" 2>/dev/null && [ "$SECONDS" -lt "$start_seconds" ] || { cat "$NODE_LOG" >&2; exit 1; }
    [ -z "$is_told" ] || exit 130
    sleep 1
done
for _ in $(seq "${NODES:-2}"); do
    start_node --address "$address" --num-cpus "${CPUS:-2}" --num-gpus "${GPUS:-0}"
done

setsid "$python" "$here/sweeps/run_pairs.py" --address "$address" "$@" &
driver=$!
[ -z "$is_told" ] || kill -TERM "$driver"  # told before the trap knew whom to stop
while kill -0 "$driver" 2>/dev/null; do wait "$driver" || true; done  # a signal ends a wait
wait "$driver" && status=0 || status=$?
[ "$status" != 143 ] || status=130  # stopped before it listened for signals, so before anything ran
exit "$status"
