#!/usr/bin/env bash
#SBATCH --job-name=hsakd
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
# A sweep on the nodes of one Slurm job, requeued until it is complete:
#   sbatch recipes/slurm.sh --preset paper --gpus 16 --data-dir /shared/data --out /shared/runs/paper --time-limit 23:40:00
# Ten minutes before the job's end (USR1), or when it is cancelled (TERM), trials checkpoint and the driver ends with status 130: then, and
# only then, the job is requeued. A failed trial (status 1), bad input (2), a full disk or nodes that can't run trials (3) need a person.
# scancel ends the nodes, too, within seconds; scancel --batch --signal=TERM JOB leaves them until the trials' checkpoints are written.
# All nodes must see the checkout: HSAKD_HOME, or the folder in which sbatch was called.
set -u
here=${HSAKD_HOME:-$SLURM_SUBMIT_DIR}
python=${PYTHON:-python}
ray=${RAY:-ray}
port=$((20000 + SLURM_JOB_ID % 12000))  # below the ports that Linux gives to clients
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled} RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since Slurm 22.05 srun doesn't take it from the job, and binds a step to one core

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
address="$head:$port"
start_seconds=1200
steps=()
driver=
is_told=
is_cancelled=

stop_nodes() {
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null; done
    for step in "${steps[@]}"; do wait "$step" 2>/dev/null; done
}
end() {
    status=$1
    [ "$status" != 143 ] || status=130  # stopped before it listened for signals, so before anything ran
    if [ "$status" = 130 ] && [ -z "$is_cancelled" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
    exit "$status"
}
trap stop_nodes EXIT
trap 'is_told=yes; [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null' USR1
trap 'is_told=yes; is_cancelled=yes; [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null' TERM

srun --nodes=1 --ntasks=1 --nodelist="$head" \
    "$here/recipes/ray_node.sh" --head --port "$port" --node-ip-address "$head" --num-cpus "$SLURM_CPUS_PER_TASK" --include-dashboard false &
steps+=("$!")
until "$ray" status --address "$address" 2>/dev/null | grep -q ' node_'; do
    kill -0 "${steps[0]}" 2>/dev/null || { echo "Ray's head did not start on $head" >&2; exit 1; }
    [ "$SECONDS" -lt "$start_seconds" ] || { echo "Ray's head on $head is not in the cluster after $start_seconds s" >&2; exit 1; }
    [ -z "$is_told" ] || end 130
    sleep 2
done
if [ "${#hosts[@]}" -gt 1 ]; then
    srun --nodes=$((${#hosts[@]} - 1)) --ntasks=$((${#hosts[@]} - 1)) --exclude="$head" \
        "$here/recipes/ray_node.sh" --address "$address" --num-cpus "$SLURM_CPUS_PER_TASK" &
    steps+=("$!")
fi

"$python" "$here/sweeps/run_pairs.py" --address "$address" "$@" &
driver=$!
[ -z "$is_told" ] || kill -TERM "$driver"  # told before the trap knew whom to stop
while kill -0 "$driver" 2>/dev/null; do wait "$driver" || true; done  # a signal ends a wait
wait "$driver" && end 0 || end $?
