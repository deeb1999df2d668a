"""A language of two tokens and three symbols, its exact denoiser in place of a network, and chains by enumeration."""

import itertools
from dataclasses import dataclass

import torch

from ldlm.baselines.chain import ChainState

JOINT = torch.tensor([[0.30, 0.02, 0.03], [0.02, 0.25, 0.03], [0.05, 0.05, 0.25]], dtype=torch.float64)
ENTROPY = 1.7207866433
LENGTH, VOCAB = 2, 3
MASK = VOCAB


@dataclass
class ExactNetwork:
    """p(x_i | z at the other position), or with `full` p(x_i | z), in logits. The condition is −log α; None: masks.

    `joint` (3, 3) is a language of two tokens, or (V,) one of a single token, whose estimate is the prior itself.
    """

    joint: torch.Tensor = JOINT
    masks: bool = False
    full: bool = False

    @property
    def embedding(self):
        """Embeddings from which the tokens can be read."""
        return torch.eye(self.joint.shape[0] + self.masks, dtype=torch.float64)

    def hidden(self, e_BLW, condition_B):
        """Log of the estimate."""
        z_BL, vocab = e_BLW.argmax(-1), self.joint.shape[0]
        if self.joint.ndim == 1:
            return self.joint.log().expand(*z_BL.shape, -1)
        if self.masks:
            one_hot = torch.eye(vocab, dtype=torch.float64)
            seen_BLV = torch.cat([one_hot, torch.ones(1, vocab, dtype=torch.float64)])[z_BL]
        else:
            alpha = torch.exp(-condition_B.double()).reshape(-1, 1, 1)
            seen_BLV = alpha * torch.eye(vocab, dtype=torch.float64)[z_BL] + (1 - alpha) / vocab
        # p(x_1, z_2) and p(x_2, z_1)
        first = torch.einsum("ab,nb->na", self.joint, seen_BLV[:, 1])
        second = torch.einsum("ab,na->nb", self.joint, seen_BLV[:, 0])
        found_BLV = torch.stack([first, second], dim=1)
        if self.full:
            found_BLV = found_BLV * seen_BLV
        return found_BLV.log()

    def logits(self, h_W):
        """The log of the estimate is made already."""
        return h_W


def states(count, length):
    """All sequences of that length over `count` states, (count^length, length)."""
    return torch.tensor(list(itertools.product(range(count), repeat=length)))


def transition(chain, network, row):
    """The matrix of a row over all sequences of states, by the chain's own law of the row."""
    count = chain.process.vocab + chain.process.absorbing
    z_BL = states(count, chain.seq_len)
    state = ChainState(torch.zeros(len(z_BL), dtype=torch.int64), z_BL, torch.ones(z_BL.shape, dtype=torch.float64))
    law_BLS = chain.law(state, row, chain.estimate(network, state, row))
    assert (law_BLS >= -1e-15).all()
    torch.testing.assert_close(law_BLS.sum(-1), torch.ones_like(law_BLS[..., 0]), atol=1e-12, rtol=0)
    matrix = law_BLS[:, 0]
    for position in range(1, chain.seq_len):
        matrix = (matrix[:, :, None] * law_BLS[:, position, None, :]).flatten(1)
    return matrix


def marginals(chain, network):
    """The distribution over all sequences of states before each row and after the last."""
    count = chain.process.vocab + chain.process.absorbing
    p = torch.zeros(count**chain.seq_len, dtype=torch.float64)
    if chain.process.absorbing:
        p[-1] = 1
    else:
        p[:] = 1 / len(p)
    yield p
    for row in range(chain.rows):
        p = p @ transition(chain, network, row)
        yield p


def output_law(chain, network):
    """The distribution of texts, in the shape (V, V, …); nothing may be left masked."""
    *_, p = marginals(chain, network)
    p = p.view([chain.process.vocab + chain.process.absorbing] * chain.seq_len)
    tokens = p[tuple([slice(chain.process.vocab)] * chain.seq_len)]
    assert tokens.sum().item() > 1 - 1e-12
    return tokens


def distance(p, q=JOINT):
    """Total variation."""
    return 0.5 * (p - q).abs().sum().item()


def rate(method, network, draws_of, z_count):
    """E over x and z of the loss per sequence; `draws_of(x, z)` are draws that corrupt x to z, and q(z|x)."""
    total = 0.0
    x_BL = states(VOCAB, LENGTH)
    for z in states(z_count, LENGTH):
        draws, chance_B = draws_of(x_BL, z.expand_as(x_BL))
        loss_B = method.losses(network, x_BL, draws).loss_BL.sum(-1)
        total += (JOINT.flatten() * chance_B * torch.where(chance_B > 0, loss_B, 0.0)).sum().item()
    return total


def teach(method, network, x_BL, steps=120):
    """Train a network by a method for a few steps, each on all of the texts (B, L)."""
    optimizer, rows = torch.optim.Adam(network.parameters(), lr=0.02), len(x_BL)
    for step in range(steps):
        draws = method.draw(seed=0, step=step, rows_B=torch.arange(rows), batch=rows, seq_len=x_BL.shape[1])
        optimizer.zero_grad()
        method.losses(network, x_BL, draws).mean.backward()
        optimizer.step()
