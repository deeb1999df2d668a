"""The export of a token-level run: its network, its method and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from ldlm import config as configs
from ldlm.baselines.description import TokenDescription
from ldlm.baselines.exported import TokenDiffusion
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.config import TokenExportConfig
from ldlm.sampling import exporting
from ldlm.sampling.exporting import Export


def of_run(config: TokenExportConfig, path: Path) -> Export:
    """The export of a run of a rival."""
    run = TrainedTokenRun(path, torch.device("cpu"), config.checkpoint)
    networks = {"network": run.network}

    def model(_: Path) -> TokenDiffusion:
        provenance = exporting.provenance(run, configs.identity(run.config))
        described = TokenDescription(
            shapes=run.shapes, sampler=config.sampler, provenance=provenance, precision=config.precision
        )
        return TokenDiffusion(described, networks, run.path / "tokenizer")

    return Export(
        config=config,
        origin=run.origin,
        inputs={"checkpoint": run.checkpoint.digest},
        contents={"method": run.method, "precision": config.precision},
        parameters=exporting.parameters(networks),
        check=lambda: run.check(config.sampler),
        remark=run.remark_on_end,
        model=model,
    )
