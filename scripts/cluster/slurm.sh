#!/usr/bin/env bash
# Run a search on the nodes of a Slurm job: `ray symmetric-run` starts Ray on each node, runs the
# search on the first node and stops Ray. In the root of a checkout that every node can read, type:
#
#   bash scripts/search --dry-run                  # once, on a login node: makes .venv
#   sbatch --nodes=2 --gpus-per-node=4 scripts/cluster/slurm.sh --data /shared/ICBHI --trials 100 --name first
#   tail -F resp-tune-JOB.log
#
# The arguments after the script are those of the search; --address is added here. After the time
# limit or a lost node, rerun the same command to resume; after a preemption Slurm reruns it.
# Environment variables:
#   RESP_TUNE_VENV     the virtual environment                    ./.venv
#   RESP_TUNE_SHARED   your folder on a shared file system        $HOME
#   RESP_TUNE_HEAD_IP  the first node's address                   the first of `hostname -I`
#
#SBATCH --job-name=resp-tune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --output=resp-tune-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Whole nodes: symmetric-run refuses a node on which Ray already runs, and stops every Ray at its end.
#SBATCH --exclusive
# A lost node does not end the job: its trials resume elsewhere.
#SBATCH --no-kill
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: slurm.sh runs inside a Slurm job; type: sbatch $0 --data FOLDER --name NAME" >&2
  exit 2
fi
venv=${RESP_TUNE_VENV:-$PWD/.venv}
if [ ! -x "$venv/bin/python" ]; then
  echo "error: no virtual environment in '$venv'; type: bash scripts/search --dry-run" >&2
  exit 2
fi
# PATH instead of `activate`, which fails with `set -u`.
export PATH="$venv/bin:$PATH"

# The token is in a file that only its owner can read: `ps e` and `scontrol` show arguments and
# environment variables.
private=$(umask 077 && mktemp -d "${RESP_TUNE_SHARED:-$HOME}/.resp-tune-$SLURM_JOB_ID.XXXXXX")
trap 'rm -rf "$private"' EXIT
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$private/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/token"

# A batch script runs on the job's first node; symmetric-run makes the node with this address the
# head.
read -r first_address _ < <(hostname -I)
export RESP_TUNE_HEAD="${RESP_TUNE_HEAD_IP:-$first_address}:6379"
export RESP_TUNE_EXIT="$private/exit"
# Folder of Ray's sockets and logs, on each node's disk, one per job; kept after a failure.
export RAY_TMPDIR="/tmp/resp-tune-$SLURM_JOB_ID"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
export RAY_USAGE_STATS_ENABLED=0

# The command of each task, with the CPUs and GPUs of its node. The search's exit code is written to a
# file, because symmetric-run exits with 0 even if Ray could not be started.
# shellcheck disable=SC2016 # the tasks' shells expand these variables
on_every_node='
  mkdir -p -m 700 "$RAY_TMPDIR"
  ray symmetric-run --address "$RESP_TUNE_HEAD" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- bash -c '\''"$@"; echo $? > "$RESP_TUNE_EXIT"'\'' - "$@"
  [ "$(cat "$RESP_TUNE_EXIT" 2>/dev/null)" != 0 ] || rm -rf "$RAY_TMPDIR"'

# --cpus-per-task is repeated because srun no longer inherits it from sbatch. The other nodes end a
# minute after the first: for so long Ray looks for the lost head, and then prints a long message.
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --kill-on-bad-exit=0 \
  bash -c "$on_every_node" - python -m resp_tune.search --address "$RESP_TUNE_HEAD" "$@" ||
  echo "srun ended with $?" >&2

if [ ! -e "$private/exit" ]; then
  echo "error: the search was not started; see Ray's messages above" >&2
  exit 1
fi
exit "$(cat "$private/exit")"
