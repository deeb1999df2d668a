#!/usr/bin/env bash
# Makes a tiny store, run, decoder, export and samples in FOLDER with the `ldlm` on the PATH:
#
#     bash tests/golden/make-artefacts.sh FOLDER
#
# What a released version makes is kept beside this file as vX.Y.Z, and tests/test_artefacts.py opens it for good.
set -euo pipefail
mkdir -p "$1" && cd "$1"
export OMP_NUM_THREADS=1

# Text, and a GPT-2 with a tokenizer of its words: all from fixed seeds.
python - <<'END'
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

draw = random.Random(0)
words = "the a cat dog bird river house tree sat ran saw found near under over old small red and then".split()
documents = [" ".join(draw.choices(words, k=draw.randint(6, 12))) + "." for _ in range(160)]
Path("text.txt").write_text("\n".join(documents))

vocabulary = ["<eos>", "<unk>", ".", *sorted(words)]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"bos_token": "<eos>", "eos_token": "<eos>", "unk_token": "<unk>"}
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=16)
fast.save_pretrained("encoder")

torch.manual_seed(0)
size = {"vocab_size": len(vocabulary), "n_positions": 16, "n_embd": 8, "n_layer": 3, "n_head": 2}
GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).save_pretrained("encoder")
END

ldlm extract-features --encoder encoder --data text.txt --validation-docs 24 --seq-len 16 --output features

# A store whose extraction was killed when the first of its shards was written, with what it was made from.
mkdir unfinished
cp -r encoder unfinished
head -n 70 text.txt > unfinished/text.txt
(cd unfinished && python - <<'END') || true
import os
from pathlib import Path

from ldlm.config import ExtractConfig
from ldlm.progress import Progress, Task
from ldlm.stages import extract_features


class Killing(Task):
    def advance(self, count, **figures):
        if Path("features/ledger").is_dir() and any(Path("features/ledger").glob("train-*")):
            os._exit(9)


class Kill(Progress):
    def task(self, name, total, unit, done=0):
        return Killing()


sizes = {"seq_len": 16, "shard_rows": 16, "batch_size": 16}
config = ExtractConfig(encoder="encoder", data=("text.txt",), validation_docs=10, device="cpu", **sizes)
extract_features.run(config, Path("features"), progress=Kill())
END
ls unfinished/features/ledger/train-* > /dev/null
test ! -e unfinished/features/manifest.json

train() {  # train STEPS RUN; the learning rate does not depend on the end, so a run can go on beyond it
    ldlm train --features features --preset tiny --steps "$1" --batch-size 16 --output "$2" \
        --log-every 20 --eval-rows 16 --eval-every 200 --save-every 200 --keep 1 \
        --set optimizer.lr=0.005 --set optimizer.lr_decay=constant --set optimizer.lr_warmup_steps=10 \
        --set recipe.warmup_steps=2000 --set timesteps.refresh_steps=10 \
        --set model.autoencoder.width=8 --set model.autoencoder.heads=2 \
        --set model.denoiser.width=8 --set model.denoiser.heads=2 \
        --set model.denoiser.layers=1 --set model.denoiser.time_dim=8 --set model.token_decoder.heads=2
}
train 400 run
ldlm finetune-decoder --run run --features features --layers 1 --steps 200 --batch-size 16 --lr 0.005 \
    --log-every 20 --eval-every 200
ldlm export --run run --output model
ldlm sample --run run --num-samples 4 --decoder joint --output joint.jsonl --overwrite
ldlm sample --run run --num-samples 4 --decoder layers-1 --set sampler.temperature=1 --output layers-1.jsonl --overwrite

# What a resumption has to come to. The resumed run itself is not kept.
cp -r run resumed
train 420 resumed
python - <<'END'
import hashlib
import json
from pathlib import Path

NAMES = ("l_diff", "l_h", "l_w", "token_accuracy", "latent_std", "gradient_norm")
lines = [json.loads(line) for line in Path("resumed/metrics.jsonl").read_text().splitlines()]
found = {line["kind"]: {n: line[n] for n in NAMES if n in line} for line in lines if line["step"] == 420}
ema = Path("resumed/checkpoints/step-00000420/ema.safetensors").read_bytes()
result = {"step": 420, **found, "ema_sha256": hashlib.sha256(ema).hexdigest()}
Path("resumed.json").write_text(json.dumps(result, indent=1))
END
rm -r encoder resumed text.txt run/plots run/tensorboard run/decoders/*/tensorboard
