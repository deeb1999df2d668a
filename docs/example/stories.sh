#!/bin/sh
# Trains the model of examples/stories in ./stories. One core takes two hours. Run it again to continue.
set -eu
mkdir -p stories && cd stories
common="--device cpu"

ldlm stories --documents 200000 --seed 0 --output stories.txt --tokenizer words
ldlm pretrain-encoder --data stories.txt --tokenizer words --positions 64 --steps 1500 --init width --output encoder $common
ldlm extract-features --encoder encoder --data stories.txt --validation-docs 2000 --seq-len 64 --output features $common
ldlm train --features features --preset tiny --steps 6000 --set recipe.sigma_dec=0.5 --set recipe.warmup_steps=2400 \
    --set timesteps.refresh_steps=250 --set optimizer.kind=muon --set optimizer.lr=0.006 \
    --set optimizer.lr_warmup_steps=200 --set model.denoiser.layers=4 --set model.denoiser.width=192 \
    --set model.denoiser.heads=6 --set eval_every=1000 --set save_every=300 --output run $common

for seed in 0 1 2 3; do
    ldlm sample --run run --num-samples 500 --seed $seed --output seeds/$seed.jsonl $common
done
ldlm evaluate seeds --seeds --source stories

ldlm export --run run --precision bf16 --output model
