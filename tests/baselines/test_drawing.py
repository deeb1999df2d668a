"""Drawing: the law of what is drawn, texts that depend on their seeds alone, and evaluations that are saved."""

from dataclasses import dataclass

import pytest
import torch
from scipy.stats import chisquare
from toy_language import JOINT, VOCAB, ExactNetwork, distance, output_law

from benchmarks.contenders import Eager
from ldlm import noise
from ldlm.baselines.chain import Chain, ChainState
from ldlm.baselines.drawing import Mixture, invert, race
from ldlm.baselines.duo import DuoProcess
from ldlm.baselines.estimate import Estimate
from ldlm.baselines.interface import Counted, draw_texts
from ldlm.baselines.mdlm import MDLMProcess
from ldlm.baselines.nucleus import Nucleus
from ldlm.baselines.psi import PsiProcess
from ldlm.baselines.remdm import ReMDMProcess
from ldlm.config import DuoConfig, MDLMConfig, PsiConfig, ReMDMConfig, from_dict
from ldlm.errors import InputError
from ldlm.model import token_loss

LIKELY = 1e-3  # p-value below which a law is refused


def mixture(stay, token, noise_weight):
    return Mixture(*(torch.tensor([[weight]], dtype=torch.float64) for weight in (stay, token, noise_weight)))


def counts_of(drawn, states):
    return torch.bincount(drawn.flatten(), minlength=states).double()


def p_value(counts, law):
    """Of Pearson's test; states without probability must not occur."""
    assert counts[law == 0].sum() == 0
    likely = law > 0
    if likely.sum() == 1:
        return 1.0
    return chisquare(counts[likely], law[likely] * counts.sum() / law[likely].sum()).pvalue


# ----------------------------------------------------------------------------------------------------------------------
# Laws


def test_a_mixture_is_a_law_over_states():
    x_theta = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=torch.float64)
    assert mixture(0.5, 0.3, 0.2).law(torch.tensor([[1]]), x_theta, None).flatten().tolist() == pytest.approx(
        [0.06 + 0.2 / 3, 0.5 + 0.15 + 0.2 / 3, 0.09 + 0.2 / 3]
    )
    assert mixture(0.5, 0.3, 0.2).law(torch.tensor([[3]]), x_theta, 3).flatten().tolist() == pytest.approx(
        [0.06, 0.15, 0.09, 0.7]
    )


def test_components_are_chosen_by_their_weights():
    u = (torch.arange(1000, dtype=torch.float64)[None] + 0.5) / 1000
    weights = Mixture(*(torch.full_like(u, weight) for weight in (0.5, 0.3, 0.2)))
    token, special = weights.choose(u)
    assert not (token & special).any()
    assert (token.sum().item(), special.sum().item()) == (300, 200)


def test_no_mask_is_let_through_by_rounding():
    # 0.1 + 0.9 is 1 here, but 1 − 0.9 + 0.9 · … may fall short: the largest u must still ask for a token.
    u = torch.tensor([[1 - 2.0**-53]], dtype=torch.float64)
    token, special = mixture(0.0, 1 - 2.0**-52, 0.0).choose(u)
    assert token.all() and not special.any()


def test_inversion_draws_by_the_law():
    p = torch.tensor([[0.0, 3.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert counts_of(invert(p.expand(1000, -1), u), 5).tolist() == [0, 750, 0, 250, 0]
    ends = torch.tensor([1e-300, 1 - 2.0**-53], dtype=torch.float64)
    assert invert(p.expand(2, -1), ends).tolist() == [1, 3]


def test_inversion_finds_an_outcome_of_probability_1e_9():
    p = torch.tensor([1 - 1e-9, 1e-9], dtype=torch.float64).expand(3, 2)
    u = torch.tensor([1 - 1.001e-9, 1 - 0.999e-9, 1 - 1e-12], dtype=torch.float64)
    assert invert(p, u).tolist() == [0, 1, 1]


# ----------------------------------------------------------------------------------------------------------------------
# The rows of chains


@dataclass
class Constant:
    """A network that estimates the same everywhere, whatever it sees."""

    p: torch.Tensor
    masks: bool = True

    @property
    def embedding(self):
        return torch.eye(len(self.p) + self.masks, dtype=torch.float64)

    def hidden(self, e_BLW, condition_B):
        return self.p.log().expand(*e_BLW.shape[:2], -1)

    def logits(self, h_W):
        return h_W


RARE = torch.tensor([0.7, 0.29, 0.0099, 1e-4], dtype=torch.float64)
PROCESSES = {
    "mdlm": MDLMProcess(4, 4),
    "remdm": ReMDMProcess(4, ReMDMConfig(steps=4, eta=0.7)),
    "remdm conf": ReMDMProcess(4, ReMDMConfig(steps=4, schedule="conf")),
    "duo": DuoProcess(4, 4),
    "psi": PsiProcess(4, PsiConfig(steps=4, mode="kappa", eta=0.3)),
}


@pytest.mark.parametrize("drawing", ["exact", "race"])
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("row", [1, 2])
def test_a_row_draws_by_its_law(name, drawing, row):
    process, texts, length = PROCESSES[name], 200, 100
    network = Constant(RARE, masks=process.absorbing)
    chain = Chain(process, length, drawing=drawing)
    z_BL = (torch.arange(length) % (4 + process.absorbing)).expand(texts, length)
    state = ChainState(torch.arange(texts), z_BL, torch.full(z_BL.shape, 0.5, dtype=torch.float64))
    drawn_BL = chain.step(network, state, row).z_BL
    law_BLS = chain.law(state, row, chain.estimate(network, state, row))
    for z in range(5 if process.absorbing else 4):
        found = counts_of(drawn_BL[z_BL == z], law_BLS.shape[-1])
        assert p_value(found, law_BLS[0, z]) > LIKELY, z


@pytest.mark.parametrize("drawing", ["exact", "race"])
@pytest.mark.parametrize("name", ["mdlm", "duo"])
def test_texts_have_the_law_of_the_chain(name, drawing):
    process = {"mdlm": MDLMProcess(VOCAB, 3), "duo": DuoProcess(VOCAB, 3)}[name]
    network, chain, texts = ExactNetwork(masks=name == "mdlm"), Chain(process, 2, drawing=drawing), 20_000
    tokens_BL = draw_texts(chain, network, torch.arange(texts)).tokens_BL
    found = counts_of(tokens_BL[:, 0] * VOCAB + tokens_BL[:, 1], VOCAB**2)
    law = output_law(chain, network)
    assert distance(law) > 0.1  # so that it is this law and not that of the language
    assert p_value(found, law.flatten()) > LIKELY


@pytest.mark.slow
def test_a_race_in_float32_loses_what_is_rare():
    # s/t is 1 − 1.6e-4, and each of 8,192 tokens has 2e-8 of it; the shortest time in float32 is 6e-8.
    vocab, chance, expected = 8_192, 2e-8, 12
    law = torch.full((1, 1_000, vocab + 1), chance, dtype=torch.float64)
    law[..., vocab] = 1 - vocab * chance
    changed, races = {torch.float32: 0, torch.float64: 0}, round(expected / (1_000 * vocab * chance))
    for dtype in changed:
        for seed in range(races):
            changed[dtype] += (race(law.to(dtype), torch.tensor([seed]), 0) != vocab).sum().item()
    assert abs(changed[torch.float64] - expected) < 4 * expected**0.5
    assert changed[torch.float32] < 0.4 * changed[torch.float64]


def test_the_two_stages_have_the_law_where_a_race_in_float32_fails():
    rows = 2_000_000
    u = noise.uniform_fine(7, "test", 0, torch.arange(rows), (2,))
    weights = Mixture(*(torch.full((1, rows), w, dtype=torch.float64) for w in (1 - 1e-4, 1e-4, 0.0)))
    due_P, _ = (where.flatten() for where in weights.choose(u[None, :, 0]))
    tokens_P = invert(torch.tensor([0.9, 0.1], dtype=torch.float64).expand(int(due_P.sum()), 2), u[due_P, 1])
    law = torch.tensor([0.9e-4, 0.1e-4, 1 - 1e-4], dtype=torch.float64)
    found = torch.cat([counts_of(tokens_P, 2), (~due_P).sum()[None].double()])
    assert p_value(found, law) > LIKELY


# ----------------------------------------------------------------------------------------------------------------------
# Seeds and batches


@pytest.mark.parametrize("drawing", ["exact", "race"])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_text_depends_on_its_seed_and_not_on_its_batch(name, drawing):
    process = PROCESSES[name]
    network = Constant(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), masks=process.absorbing)
    chain, seeds = Chain(process, 9, drawing=drawing), torch.tensor([5, 2**40 + 1, 7, 11])
    together = draw_texts(chain, network, seeds).tokens_BL
    assert torch.equal(together, torch.cat([draw_texts(chain, network, seed[None]).tokens_BL for seed in seeds]))
    assert len({tuple(text) for text in together.tolist()}) == len(seeds)
    assert together.max() < process.vocab


def test_positions_in_parts_give_the_same_texts(monkeypatch):
    chain, network, seeds = Chain(DuoProcess(VOCAB, 5), 2, Nucleus(0.8, "inclusive")), ExactNetwork(), torch.arange(50)
    whole = draw_texts(chain, network, seeds).tokens_BL
    monkeypatch.setitem(token_loss.CHUNK, "cpu", 21)
    assert torch.equal(draw_texts(chain, network, seeds).tokens_BL, whole)


# ----------------------------------------------------------------------------------------------------------------------
# Evaluations


@pytest.mark.parametrize("drawing", ["exact", "race"])
def test_many_steps_of_one_text_take_few_evaluations(drawing):
    process, network, seeds = MDLMProcess(VOCAB, 60), ExactNetwork(masks=True), torch.arange(6)
    lazy, eager = (kind(process, 2, drawing=drawing) for kind in (Chain, Eager))
    for seed in seeds[:, None]:
        few, all_rows = draw_texts(lazy, network, seed), draw_texts(eager, network, seed)
        assert torch.equal(few.tokens_BL, all_rows.tokens_BL)
        assert few.rows == all_rows.rows == all_rows.evaluations == 61
        assert 1 <= few.evaluations <= 3  # L + 1


def test_with_few_steps_every_row_is_evaluated():
    drawn = draw_texts(Chain(DuoProcess(VOCAB, 7), 2), ExactNetwork(), torch.arange(4))
    assert (drawn.rows, drawn.evaluations) == (8, 8)


def test_an_estimate_is_asked_only_where_a_token_is_due():
    asked = []

    class Watched(Counted):
        def logits(self, h_W):
            asked.append(h_W.shape[0])
            return super().logits(h_W)

    network = Watched(ExactNetwork(masks=True))
    draw_texts(Chain(MDLMProcess(VOCAB, 50), 2, Nucleus(0.9)), network, torch.arange(10))
    assert sum(asked) == 10 * 2


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_the_estimate_of_a_token_is_that_of_the_whole(top_p):
    z_BL = torch.tensor([[0, 1], [2, 2], [1, 0]])
    nucleus = Nucleus(top_p, "inclusive")
    one = Estimate(ExactNetwork(), z_BL, 0.3, nucleus)
    whole_BLV = Estimate(ExactNetwork(), z_BL, 0.3, nucleus).all_BLV
    torch.testing.assert_close(one.of(z_BL), whole_BLV.gather(-1, z_BL[..., None]).squeeze(-1))
    torch.testing.assert_close(torch.cat(list(one.at(torch.arange(6)))), whole_BLV.flatten(0, 1))
    torch.testing.assert_close(whole_BLV.sum(-1), torch.ones(3, 2, dtype=torch.float64))


def test_confidence_is_the_estimate_of_the_token_when_it_was_drawn():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    for drawing in ("exact", "race"):
        chain, network = Chain(MDLMProcess(3, 2), 50, drawing=drawing), Constant(p)
        state = chain.begin(network, torch.arange(3))
        for row in range(chain.rows):
            state = chain.step(network, state, row)
        torch.testing.assert_close(state.confidence_BL, p[state.z_BL])


def test_defaults_are_the_published_ones():
    def settings(config):
        chain = Chain.of(DuoProcess(3, 1), 2, config)
        return chain.nucleus.top_p, chain.nucleus.rule, chain.end, chain.drawing

    assert settings(MDLMConfig()) == (1.0, "exclusive", "argmax", "exact")
    assert settings(ReMDMConfig()) == (0.9, "exclusive", "argmax", "exact")
    assert settings(DuoConfig()) == (1.0, "inclusive", "draw", "exact")
    assert settings(PsiConfig()) == (0.9, "inclusive", "draw", "exact")
    assert settings(PsiConfig(top_p=1.0, end="argmax", drawing="race")) == (1.0, "inclusive", "argmax", "race")


@pytest.mark.parametrize("top_p", [0.0, 1.1])
def test_p_out_of_range_is_refused(top_p):
    with pytest.raises(InputError, match="top_p must be"):
        from_dict(ReMDMConfig, {"top_p": top_p})


def test_the_end_takes_the_most_likely_tokens():
    network = Constant(torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64))
    assert (
        draw_texts(Chain(MDLMProcess(3, 1), 40, end="argmax"), network, torch.arange(3)).tokens_BL == 1
    ).float().mean() < 1
    chain = Chain(DuoProcess(3, 1), 40, end="argmax")
    assert (draw_texts(chain, Constant(network.p, masks=False), torch.arange(3)).tokens_BL == 1).all()
    assert JOINT.sum() == pytest.approx(1)
