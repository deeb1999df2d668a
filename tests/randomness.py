"""Random tensors and networks in float64, for tests of the networks' arithmetic."""

import torch
from torch import Tensor, nn


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(module: nn.Module, std: float = 0.3, *, around_ones: bool = False) -> nn.Module:
    """Float64, every parameter random: at initialisation the gates hide the blocks.

    `around_ones` adds 1 to the parameters that are 1, such as the gains of norms.
    """
    generator = torch.Generator().manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator) + around_ones * (parameter == 1))
    return module
