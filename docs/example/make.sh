#!/bin/sh
# Trains the example model in ./example, from a file of English novels, a paragraph per line, and makes what is shown here.
# Two cores take some hours. Run it again to continue.
set -eu
novels=$(realpath "$1") split=$(realpath "$(dirname "$0")/split.sh")
mkdir -p example && cd example
common="--device cpu"

sh "$split" "$novels"
ldlm pretrain-encoder --data train.txt --vocab-size 16384 --positions 64 --steps 2000 --init width --output encoder $common
ldlm pretrain-encoder --data scorer.txt --vocab-size 4096 --positions 64 --steps 1500 --output scorer $common
ldlm extract-features --encoder encoder --data train.txt --validation-data held-out.txt --seq-len 64 \
    --output features $common
ldlm train --features features --preset tiny --steps 10000 --set recipe.sigma_dec=1.0 --set recipe.warmup_steps=4000 \
    --set timesteps.refresh_steps=250 --set optimizer.kind=muon --set optimizer.lr=0.006 --set optimizer.lr_warmup_steps=200 \
    --set model.denoiser.layers=4 --set model.denoiser.width=192 --set model.denoiser.heads=6 --output run $common
ldlm features texts features --rows 1000 --output real.jsonl

# 63 tokens: at its 64th, where all rows that it was trained on end, the scorer expects nothing else.
for temperature in 0 0.4 0.6; do
    for seed in 0 1 2 3; do
        ldlm sample --run run --decoder joint --temperature $temperature --num-samples 500 --seed $seed \
            --output seeds-$temperature/$seed.jsonl $common
    done
    ldlm evaluate seeds-$temperature --seeds --reference real.jsonl --training features --scorer scorer \
        --max-tokens 63 $common
done

ldlm sample --run run --decoder joint --num-samples 256 --output run/samples.jsonl $common
ldlm sample --run run --decoder joint --trace run/trace $common
ldlm interpolate --run run --features features --decoder joint --scorer scorer $common
ldlm evaluate run/samples.jsonl --reference real.jsonl --training features --scorer scorer --max-tokens 63 $common
ldlm report run

ldlm export --run run --decoder joint --precision bf16 --output novels
