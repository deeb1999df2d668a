"""Tiny random models of many architectures of transformers, made from plain configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY, POSITIONS, DEPTH = 320, 64, 4
ROWS = 12  # tokens in a row: no multiple of the windows of 8
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": POSITIONS, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PADDED = {"pad_token_id": 1, "bos_token_id": 0}  # RoBERTa's numbers: positions begin behind the padding index
FREE = {"max_position_embeddings": None}  # has no positions that end
NO_DEPTH = {"num_hidden_layers": None, "num_attention_heads": None}
BOTH = {
    "d_model": 32, "encoder_layers": DEPTH, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {**FREE, "d_model": 32, "d_kv": 16, "num_layers": DEPTH, "num_decoder_layers": 2, "num_heads": 2, "d_ff": 48}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HEAD = {"head_dim": 16}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
VISION = {
    "hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip

# name: what differs from COMMON. "type" where the name is not transformers' own, "class" where it is not AutoModel,
# "rows" where a row of ROWS tokens won't do.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "albert, 4 groups": {"type": "albert", "embedding_size": 16, "num_hidden_groups": DEPTH},
    "apertus": {},
    "arcee": {},
    "bart": BOTH,
    "bert": {},
    "bert-generation": {},
    "big_bird": {},
    "bigbird_pegasus": BOTH,
    "biogpt": {},
    "bitnet": {},
    "blenderbot": BOTH,
    "blenderbot-small": BOTH,
    "bloom": FREE,
    "camembert": PADDED,
    "canine": {},
    "clip_text_model": {},
    "codegen": {"rotary_dim": 8, "num_attention_heads": 4},
    "cohere": {},
    "cohere2": HEAD,
    "convbert": {},
    "cpmant": {"dim_ff": 48, "dim_head": 16, "prompt_length": 4, "prompt_types": 4},
    "ctrl": {"dff": 48},
    "data2vec-text": PADDED,
    "deberta": {},
    "deberta-v2": {**DEBERTA, "position_buckets": 16},
    "deberta-v2, convolution": {
        **DEBERTA, "type": "deberta-v2", "position_buckets": 16, "share_att_key": True, "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "deepseek_v3": {
        **EXPERTS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1,
    },
    "diffllama": {},
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "ernie4_5": HEAD,
    "esm": PADDED,
    "exaone4": {},
    "falcon": {},
    "falcon_mamba": {**FREE, "state_size": 4},
    "flaubert": {},
    "fnet": {},
    "fsmt": {**BOTH, "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["en", "de"]},
    "funnel": {
        "class": "FunnelModel",**FREE, **NO_DEPTH, "block_sizes": [2, 2],
        "block_repeats": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 48},
    "gemma": HEAD,
    "gemma2": HEAD,
    "gemma3_text": HEAD,
    "gemma3": {"text_config": {**COMMON, **HEAD}, "vision_config": VISION},
    "glm": HEAD,
    "glm4": HEAD,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {**EXPERTS, **HEAD},
    "gptj": {"rotary_dim": 8},
    "granite": {},
    "granitemoe": {},
    "helium": HEAD,
    "ibert": PADDED,
    "jamba": {
        **EXPERTS, **FREE, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {**EXPERTS, "kv_channels": 16, "num_key_value_heads": 1},
    "layoutlm": {},
    "led": {
        **BOTH, **FREE, "max_encoder_position_embeddings": POSITIONS, "max_decoder_position_embeddings":
        POSITIONS, "attention_window": 8,
    },
    "lfm2": {},
    "lilt": {"hidden_size": 48},
    "llama": {},
    "llama4_text": {},
    "llava": {
        "text_config": {"model_type": "llama", **COMMON}, "vision_config": {"model_type": "clip_vision_model",
        **VISION},
    },
    "longformer": {"attention_window": 8},
    "longt5": T5,
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "m2m_100": BOTH,
    "mamba": {**FREE, "state_size": 4},
    "mamba2": {**FREE, "num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 4},
    "marian": BOTH,
    "markuplm": {
        "max_depth": 4, "tag_pad_id": 7, "subs_pad_id": 7, "max_xpath_tag_unit_embeddings": 8,
        "max_xpath_subs_unit_embeddings": 8,
    },
    "mbart": BOTH,
    "megatron-bert": {},
    "minimax": {},
    "mistral": {},
    "mixtral": EXPERTS,
    "mobilebert": {},
    "modernbert": {},
    "modernbert-decoder": {},
    "mpnet": PADDED,
    "mpt": {**FREE, "max_seq_len": POSITIONS},
    "mra": {},
    "mt5": T5,
    "mvp": BOTH,
    "nemotron": {},
    "nomic_bert": {},
    "nystromformer": {},
    "olmo": {},
    "olmo2": {},
    "olmoe": EXPERTS,
    "openai-gpt": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt, projected": {"type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 16},
    "pegasus": BOTH,
    "pegasus_x": {**BOTH, "rows": 16, "block_size": 8, "num_global_tokens": 4},
    "perceiver": {
        **FREE, "num_latents": 8, "d_latents": 32, "d_model": 32, "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
    },
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "plbart": BOTH,
    "prophetnet": {
        **NO_DEPTH, "hidden_size": 32, "num_encoder_layers": DEPTH, "num_decoder_layers": 2, "encoder_ffn_dim":
        48, "decoder_ffn_dim": 48, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2,
    },
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen2_vl": {
        "text_config": {**COMMON, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3],
        "rope_theta": 1e4}}, "vision_config": {"depth": DEPTH, "embed_dim": 32, "hidden_size": 32, "num_heads": 2,
        "mlp_ratio": 2},
    },
    "qwen3": HEAD,
    "qwen3_moe": {**EXPERTS, **HEAD},
    "reformer": {
        "rows": 16, **NO_DEPTH, "attn_layers": ["local", "lsh"] * 2, "attention_head_size": 16, "num_buckets": 4,
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "feed_forward_size": 48, "hash_seed": 0,
        "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
    },
    "rembert": {},
    "roberta": PADDED,
    "roberta-prelayernorm": PADDED,
    "roc_bert": {
        "shape_vocab_size": 8, "pronunciation_vocab_size": 8, "shape_embed_dim": 8, "pronunciation_embed_dim": 8,
    },
    "roformer": {},
    "rwkv": {**FREE, "context_length": POSITIONS},
    "smollm3": {},
    "splinter": {},
    "squeezebert": {"embedding_size": 32},
    "stablelm": {},
    "starcoder2": {},
    "switch_transformers": T5,
    "t5": T5,
    "t5, its encoder alone": {**T5, "type": "t5", "class": "T5EncoderModel"},
    "tapas": {},
    "udop": T5,
    "umt5": T5,
    "vit": VISION,
    "whisper": BOTH,
    "xglm": {"ffn_dim": 48},
    "xlm": {},
    "xlm-roberta": PADDED,
    "xlm-roberta-xl": PADDED,
    "xlnet": {**FREE, "d_model": 32, "n_layer": DEPTH, "n_head": 2, "d_inner": 48},
    "xmod": {**PADDED, "languages": ["en_XX"], "default_language": "en_XX"},
    "yoso": {},
}  # fmt: skip


def rows(name: str) -> int:
    """Tokens in the rows that the architecture is tried with."""
    return ARCHITECTURES[name].get("rows", ROWS)


def make(name: str, **settings: Any) -> Any:
    """The model, random and small."""
    import transformers

    chosen = {**COMMON, **ARCHITECTURES[name], **settings}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    chosen.pop("rows", None)
    made_by = chosen.pop("class", None)
    config = transformers.AutoConfig.for_model(chosen.pop("type", name), **chosen)
    torch.manual_seed(0)
    return (getattr(transformers, made_by) if made_by else transformers.AutoModel.from_config)(config).eval()


def load(name: str, folder: Path) -> Any:
    """The model from a folder, as transformers loads it."""
    import transformers

    return getattr(transformers, ARCHITECTURES[name].get("class", "AutoModel")).from_pretrained(folder).eval()
