#!/bin/bash
# The phases as jobs that wait for each other: packing on CPUs, encoding on GPUs, and the seal:
#
#     DATA=corpus.jsonl OUTPUT=features bash docs/launch/phases.sh
#
# Submit it again to continue: a phase that is done ends at once.
set -euo pipefail

script="$(dirname "$0")/extract.sbatch"
pack=$(sbatch --parsable --job-name=pack --array=0-7 --cpus-per-task=32 "$script" --only pack "$@")
encode=$(sbatch --parsable --job-name=encode --array=0-63 --gpus=1 --dependency="afterok:${pack%%;*}" \
    "$script" --only encode "$@")
sbatch --job-name=seal --array=0 --dependency="afterok:${encode%%;*}" "$script" --only seal "$@"
