#!/usr/bin/env bash
# Makes a tiny store, run, decoder, export and samples in the folder FOLDER, as the `ldlm` on the PATH writes them.
# What each version left is kept beside this file, and `test_artefacts.py` opens it: bash make-artefacts.sh FOLDER
set -euo pipefail
mkdir -p "$1" && cd "$1"
export OMP_NUM_THREADS=1
python - <<'P'
import random
r=random.Random(0); w="the a cat dog bird river house tree sat ran saw found near under over old small red and then".split()
open("text.txt","w").write("\n".join(" ".join(r.choices(w,k=r.randint(6,12)))+"." for _ in range(160)))
P
python - <<'P'
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
words = ["<eos>", "<unk>", "."] + sorted({w.strip(".") for w in open("text.txt").read().split()})
tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
tok.pre_tokenizer = pre_tokenizers.Whitespace()
fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<eos>", eos_token="<eos>", unk_token="<unk>", model_max_length=16)
fast.save_pretrained("encoder")
torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=16, n_embd=8, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0)).save_pretrained("encoder")
P
ldlm extract-features --encoder encoder --data text.txt --validation-docs 24 --seq-len 16 --output features
TINY="--features features --preset tiny --batch-size 16 --set optimizer.lr_decay=constant --set optimizer.lr_warmup_steps=10 --set recipe.warmup_steps=2000 --set timesteps.refresh_steps=10 --log-every 20 --eval-rows 16 --eval-every 200 --save-every 200 --keep 1 --set model.autoencoder.width=8 --set model.autoencoder.heads=2 --set model.denoiser.time_dim=8 --set model.denoiser.layers=1 --set model.denoiser.width=8 --set model.denoiser.heads=2 --set model.token_decoder.heads=2"
ldlm train $TINY --steps 400 --set optimizer.lr=0.005 --output run
ldlm finetune-decoder --run run --features features --layers 1 --steps 200 --batch-size 16 --lr 0.005 --log-every 20 --eval-every 200
ldlm export --run run --output model
ldlm sample --run run --num-samples 4 --decoder joint --output joint.jsonl --overwrite
ldlm sample --run run --num-samples 4 --decoder layers-1 --set sampler.temperature=1 --output layers-1.jsonl --overwrite
cp -r run resumed
ldlm train $TINY --steps 420 --set optimizer.lr=0.005 --output resumed
# Where the resumed run came to; its pictures and the rest of it are not kept.
python - <<'P'
import hashlib, json
from pathlib import Path
found = [line for line in map(json.loads, open("resumed/metrics.jsonl")) if line["step"] == 420]
names = ("l_diff", "l_h", "l_w", "token_accuracy", "latent_std", "gradient_norm")
figures = {line["kind"]: {name: line[name] for name in names if name in line} for line in found}
ema = Path("resumed/checkpoints/step-00000420/ema.safetensors").read_bytes()
Path("resumed.json").write_text(json.dumps({"step": 420, **figures, "ema_sha256": hashlib.sha256(ema).hexdigest()}, indent=1))
P
rm -r encoder resumed text.txt run/plots run/tensorboard run/decoders/*/tensorboard
