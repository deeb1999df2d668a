"""The trainable parts of an LDLM, assembled for given feature sizes (Section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldlm.config import ModelConfig, Shapes
from ldlm.errors import InputError
from ldlm.model.autoencoder import LatentDecoder, LatentEncoder, TokenDecoder
from ldlm.model.denoiser import DiT
from ldlm.model.prefix import Prefix, longest_prefix
from ldlm.model.token_loss import TokenLosses


class JointDecoder(nn.Module):
    """D_w∘D_h: z_0 (B, N, C) → logits (B, L, V)."""

    def __init__(self, latent_decoder: nn.Module, token_decoder: TokenDecoder) -> None:
        super().__init__()
        self.latent_decoder, self.token_decoder = latent_decoder, token_decoder

    def forward(self, z_BNC: Tensor) -> Tensor:
        return self.token_decoder(self.latent_decoder(z_BNC))

    def losses(self, z_BNC: Tensor, tokens_BL: Tensor) -> TokenLosses:
        """Cross-entropy and correct tokens; the logits are computed a chunk at a time."""
        return self.token_decoder.losses(self.latent_decoder(z_BNC), tokens_BL)


class JointModel(nn.Module):
    """Latent encoder E_z, latent decoder D_h, denoiser and token decoder D_w, each called separately.

    `scratch` adds token embeddings in place of the frozen encoder (EMB_θ in Table 1). `token_decoder` is None when it
    is deferred. `encodes` is False in the spaces where z_0 is h itself: there E_z and D_h are the identity.
    """

    def __init__(self, config: ModelConfig, shapes: Shapes, *, scratch: bool = False) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        self.num_latents = config.autoencoder.num_latents or shapes.seq_len
        self.latent_dim = config.autoencoder.latent_dim or shapes.hidden_dim
        sizes = {
            "seq_len": shapes.seq_len,
            "hidden_dim": shapes.hidden_dim,
            "num_latents": self.num_latents,
            "latent_dim": self.latent_dim,
        }
        self.embedding = nn.Embedding(shapes.vocab_size, shapes.hidden_dim) if scratch else None
        self.encodes = config.space in ("ldlm", "cosmos")
        if not self.encodes and (self.num_latents, self.latent_dim) != (shapes.seq_len, shapes.hidden_dim):
            raise InputError(
                f"model.space={config.space} has one latent per token, as wide as h; leave "
                f"model.autoencoder.num_latents and latent_dim at none"
            )
        self.latent_encoder = LatentEncoder(config.autoencoder, **sizes) if self.encodes else nn.Identity()
        self.latent_decoder = LatentDecoder(config.autoencoder, **sizes) if self.encodes else nn.Identity()
        self.denoiser = DiT(
            config.denoiser,
            num_latents=self.num_latents,
            latent_dim=self.latent_dim,
            prefixed=shapes if config.condition == "prefix" else None,
        )
        self.token_decoder = (
            TokenDecoder(
                width=shapes.hidden_dim,
                layers=config.token_decoder.layers,
                heads=config.token_decoder.heads,
                mlp_ratio=config.token_decoder.mlp_ratio,
                vocab_size=shapes.vocab_size,
            )
            if config.token_decoder.mode == "joint"
            else None
        )

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Shape (N, C) of a row's latents."""
        return self.num_latents, self.latent_dim

    def states(self, hidden_BLD: Tensor | None, tokens_BL: Tensor) -> Tensor:
        """h (B, L, D): the frozen encoder's states, or trainable embeddings of the tokens."""
        if self.embedding is not None:
            return self.embedding(tokens_BL)
        assert hidden_BLD is not None
        return hidden_BLD

    def prefix(self, h_BLD: Tensor | None, k_B: Tensor | None, denoiser: DiT | None = None) -> Prefix | None:
        """The condition on the first k states of each row, for the denoiser or another of its kind.

        Without lengths k it is None, for no condition.
        """
        if k_B is None:
            return None
        keys = (denoiser or self.denoiser).prefix
        assert keys is not None
        assert h_BLD is not None
        made: Prefix = keys(h_BLD[:, : longest_prefix(self.shapes.seq_len)], k_B)
        return made

    def decoder(self) -> JointDecoder:
        """D_w∘D_h as one network. D_w must not be deferred."""
        assert self.token_decoder is not None
        return JointDecoder(self.latent_decoder, self.token_decoder)

    def parts(self) -> dict[str, nn.Module]:
        """The parts that exist, by name."""
        return dict(self.named_children())


def build(config: ModelConfig, shapes: Shapes, *, seed: int, scratch: bool = False) -> JointModel:
    """A model whose initial weights depend on `seed` alone, not on earlier random draws; float32 on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return JointModel(config, shapes, scratch=scratch)


def build_meta(config: ModelConfig, shapes: Shapes, *, scratch: bool = False) -> JointModel:
    """A model without storage, on the meta device, for counting."""
    with torch.device("meta"):
        return JointModel(config, shapes, scratch=scratch)
