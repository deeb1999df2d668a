"""The discrete rivals with a network that learns: trained on the toy language, they draw it, and know its entropy."""

import pytest
import torch
from torch import nn
from toy_language import ENTROPY, JOINT, LENGTH, VOCAB, distance

from ldlm.baselines.chain import Chain
from ldlm.baselines.curriculum import Curriculum
from ldlm.baselines.duo import Duo, DuoProcess
from ldlm.baselines.interface import draw_texts
from ldlm.baselines.mdlm import MDLM, MDLMProcess
from ldlm.config import DuoCurriculumConfig

BATCH, STEPS, WIDTH = 256, 250, 64


class Tiny(nn.Module):
    """A perceptron over both embeddings and the condition."""

    def __init__(self, embeddings):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(embeddings, 8))
        self.body = nn.Sequential(
            nn.Linear(LENGTH * 8 + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(),
            nn.Linear(WIDTH, LENGTH * WIDTH),
        )  # fmt: skip
        self.head = nn.Linear(WIDTH, VOCAB)

    def hidden(self, e_BLW, condition_B):
        alpha_B = torch.zeros(1) if condition_B is None else torch.exp(-condition_B).float()
        x_BW = torch.cat([e_BLW.flatten(1), alpha_B[:, None].expand(len(e_BLW), 1)], dim=1)
        return self.body(x_BW).unflatten(1, (LENGTH, WIDTH))

    @property
    def head_parameters(self):
        return tuple(self.head.parameters())

    def logits(self, h_W):
        return self.head(h_W)


def texts(count, seed):
    generator = torch.Generator().manual_seed(seed)
    pair = torch.multinomial(JOINT.flatten(), count, replacement=True, generator=generator)
    return torch.stack([pair // VOCAB, pair % VOCAB], dim=1)


@pytest.mark.parametrize("name", ["mdlm", "duo", "duo with a curriculum"])
def test_a_trained_network_knows_the_language_and_draws_it(name):
    curriculum = Curriculum.of(DuoCurriculumConfig(top_k=2), VOCAB, STEPS) if "curriculum" in name else None
    method = MDLM(VOCAB) if name == "mdlm" else Duo(VOCAB, curriculum=curriculum)
    network, rows = Tiny(method.embeddings), torch.arange(BATCH)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        draws = method.draw(seed=0, step=step, rows_B=rows, batch=BATCH, seq_len=LENGTH)
        optimizer.zero_grad()
        method.losses(network, texts(BATCH, step), draws).mean.backward()
        optimizer.step()
        schedule.step()

    held_out = MDLM(VOCAB) if name == "mdlm" else Duo(VOCAB)
    many = 200_000  # for Duo, whose rare losses are large
    draws = held_out.draw(seed=1, step=0, rows_B=torch.arange(many), batch=many, seq_len=LENGTH)
    with torch.no_grad():
        nelbo = held_out.losses(network, texts(many, -1), draws).mean.item() * LENGTH
    assert ENTROPY - 0.1 < nelbo < ENTROPY + 0.2

    process = MDLMProcess(VOCAB, 32) if name == "mdlm" else DuoProcess(VOCAB, 32)
    tokens = draw_texts(Chain(process, LENGTH), network, torch.arange(4_000)).tokens_BL
    found = torch.bincount(tokens[:, 0] * VOCAB + tokens[:, 1], minlength=VOCAB**2).view(VOCAB, VOCAB) / len(tokens)
    assert distance(found) < 0.1  # 0.47 for independent tokens
