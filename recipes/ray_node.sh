#!/usr/bin/env bash
# One Ray node until it is told to stop (TERM): recipes/ray_node.sh ARGUMENTS OF RAY START. Ray gives a node up that isn't up within 30 s,
# as happens on a busy machine: it is given two minutes, and started again, up to three times. Ray's words go to NODE_LOG, or to stderr.
set -u
ray=${RAY:-ray}
export RAY_raylet_start_wait_time_s=${RAY_raylet_start_wait_time_s:-120} RAY_gcs_server_port_wait_time_s=${RAY_gcs_server_port_wait_time_s:-120}
export RAY_worker_register_timeout_seconds=${RAY_worker_register_timeout_seconds:-300}
attempts=3
longest_start=600  # seconds; a node that ends later stays ended
exec 3>&2
[ -z "${NODE_LOG:-}" ] || exec 3>>"$NODE_LOG"
node=
is_told=
trap 'is_told=yes; [ -n "$node" ] && kill -TERM "$node" 2>/dev/null' INT TERM

for attempt in $(seq "$attempts"); do
    [ -z "$is_told" ] || exit 0
    began=$SECONDS
    "$ray" start --block "$@" >&3 2>&1 &
    node=$!
    [ -z "$is_told" ] || kill -TERM "$node"  # told before the trap knew whom to stop
    while kill -0 "$node" 2>/dev/null; do wait "$node" || true; done  # a signal ends a wait
    wait "$node" && status=0 || status=$?
    [ -n "$is_told" ] && exit 0
    [ "$status" != 0 ] && [ $((SECONDS - began)) -lt "$longest_start" ] || exit "$status"
    echo "a Ray node ended after $((SECONDS - began)) s (status $status, start $attempt of $attempts)" >&2
done
exit "$status"
