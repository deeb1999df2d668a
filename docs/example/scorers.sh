#!/bin/sh
# Judges texts of the shipped model by two scorers: that of make.sh, and a larger one that is trained for an hour of a core.
# The argument is the file of novels; run it in the root of the sources. Run it again to continue.
set -eu
novels=$(realpath "$1") split=$(realpath "$(dirname "$0")/split.sh") model=$(realpath examples/novels)
mkdir -p scorers && cd scorers
common="--device cpu"

# Of the model's text a store needs only as much as this.
sh "$split" "$novels"
head -n 1000 train.txt > few.txt

export OMP_NUM_THREADS=1
ldlm pretrain-encoder --data scorer.txt --vocab-size 4096 --positions 64 --steps 1500 --output scorer $common
ldlm pretrain-encoder --data scorer.txt --vocab-size 4096 --width 192 --heads 6 --positions 128 --batch-size 16 \
    --steps 8000 --output scorer-hour $common

# Rows of the held-out text as the model has them: they need its tokenizer, and no encoder that has learned anything.
ldlm pretrain-encoder --data few.txt --tokenizer "$model/tokenizer" --positions 64 --steps 1 --output encoder $common
ldlm extract-features --encoder encoder --data few.txt --validation-data held-out.txt --seq-len 64 \
    --output features $common
ldlm features texts features --rows 1000 --output real.jsonl

for temperature in 0 0.4 0.6; do
    for seed in 0 1 2 3; do
        ldlm sample --run "$model" --temperature $temperature --num-samples 500 --seed $seed \
            --output seeds-$temperature/$seed.jsonl $common
    done
    for scorer in scorer scorer-hour; do
        echo "temperature $temperature, $scorer"
        ldlm evaluate seeds-$temperature --seeds --reference real.jsonl --scorer $scorer --max-tokens 63 $common
    done
done
