#!/bin/sh
# Trains a model in ./example, from a file of English novels, a paragraph per line, and makes the sweeps that are shown here.
# What is shown was made by a version whose default decoded the mean, on grids down to t = 0.05 (docs/sampling.md).
# Two cores take about four hours, of which training is one and sweeps are most. Run it again to continue.
set -eu
novels=$(realpath "$1")
mkdir -p example && cd example
common="--device cpu"

# Paragraphs of 60 characters or more, in three parts: the scorer never sees the model's text, and neither sees the last.
split() { awk -v low="$1" -v high="$2" 'length($0) >= 60 && NR % 20 >= low && NR % 20 <= high' "$novels" > "$3"; }
split 0 11 train.txt
split 12 18 scorer.txt
split 19 19 held-out.txt

ldlm pretrain-encoder --data train.txt --vocab-size 4096 --positions 64 --steps 1500 --output encoder $common
ldlm pretrain-encoder --data scorer.txt --tokenizer encoder --positions 64 --steps 1500 --output scorer $common
ldlm extract-features --encoder encoder --data train.txt --validation-data held-out.txt --seq-len 64 \
    --output features $common
ldlm train --features features --preset tiny --set model.denoiser.positions=normal --steps 6000 --output run $common
for layers in 4 0 2; do
    ldlm finetune-decoder --run run --features features --layers $layers --steps 500 $common
done
ldlm features texts features --rows 1000 --output real.jsonl

# Every solver, grid and guidance, decoded as the model was trained; as many evaluations as there are; and by a decoder
# of two layers, which was fine-tuned briefly.
sweep="ldlm sweep --run run --scorer scorer --reference real.jsonl --temperatures 0 0.5 1 $common"
$sweep --decoders joint --budgets 8 16 32 64 128 --guidances 1 1.5 2 --texts 500 --screen-texts 64
$sweep --decoders joint --budgets 128 256 1024 --guidances 1 --texts 250 --screen-texts 32 --output long
$sweep --decoders joint --budgets 1024 --guidances 1.5 2 --texts 16 --screen-texts 16 --output long-guided
$sweep --decoders layers-2 --budgets 8 16 32 64 128 256 --guidances 1 1.5 2 --texts 500 --screen-texts 64 --output layers-2
$sweep --decoders layers-0 layers-2 layers-4 joint --budgets 128 --solvers euler-maruyama --grids time --guidances 1 \
    --texts 500 --screen-texts 64 --output decoders

# The default beside the paper's sampler, in bf16, and others that the sweep chose, each with four seeds.
compare() {  # a name, and the settings of the sampler
    name=$1 && shift
    for seed in 0 1 2 3; do
        ldlm sample --run run --decoder joint --num-samples 500 --seed $seed --output $name/$seed.jsonl "$@" $common
    done
    ldlm evaluate $name --seeds --reference real.jsonl --scorer scorer --max-tokens 64 $common
}
compare default
compare bf16 --precision bf16
compare paper --sampler paper
compare paper-32 --sampler paper --steps 32
compare paper-8 --sampler paper --steps 8
compare log-snr --grid log-snr
compare guided --solver heun --guidance 1.5 --steps 8
compare eight --guidance 2 --steps 4 --temperature 0.5
