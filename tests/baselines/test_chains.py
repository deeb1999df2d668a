"""Reverse processes of the discrete rivals, whole: every sequence's probability, through the product's own rows."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from toy_language import JOINT, VOCAB, ExactNetwork, distance, output_law, transition

from ldlm.baselines.chain import Chain
from ldlm.baselines.duo import DuoProcess, uniform_posterior
from ldlm.baselines.mdlm import MDLMProcess, absorbing_mixture
from ldlm.baselines.psi import PsiProcess, kappa
from ldlm.baselines.remdm import ReMDMProcess, confidence_shares
from ldlm.baselines.schedule import LogLinear, Loop
from ldlm.config import PsiConfig, ReMDMConfig
from ldlm.errors import InputError

MASKED, UNIFORM, FULL = ExactNetwork(masks=True), ExactNetwork(), ExactNetwork(full=True)


def mdlm(steps):
    return MDLMProcess(VOCAB, steps)


def remdm(steps, **settings):
    return ReMDMProcess(VOCAB, ReMDMConfig(steps=steps, **settings))


def duo(steps):
    return DuoProcess(VOCAB, steps)


def psi(steps, **settings):
    return PsiProcess(VOCAB, PsiConfig(steps=steps, **settings))


@dataclass(frozen=True)
class PsiWithMasks(PsiProcess):
    """A Ψ-sampler with absorbing states, with which ReMDM must agree (Deschenaux et al., 2026)."""

    absorbing: bool = True
    schedule: LogLinear = LogLinear(0.0)

    def condition(self, row):
        """None: a network that sees masks is not told the time."""

    def mixture(self, row, state, x_theta):
        """κ times MDLM's row, 1 − κ times clean tokens with masks."""
        (alpha_t, alpha_s), k = self.alphas[row], self.kappas[row]
        masked = k * (1 - alpha_s) / (1 - alpha_t) + (1 - k) * (1 - alpha_s)
        return absorbing_mixture(state.z_BL == self.vocab, masked, (1 - k) * (1 - alpha_s))


def psi_with_masks(steps, **settings):
    return PsiWithMasks(VOCAB, PsiConfig(steps=steps, **settings))


# name: (process of N steps, network, end, distance to the language after 1, 2, 4, 16, 64 and 256 steps)
GOLDEN = {
    "mdlm": (mdlm, MASKED, "draw", (0.465991, 0.232995, 0.116498, 0.029124, 0.007281, 0.001820)),
    "remdm .05": (
        partial(remdm, eta=0.05), MASKED, "draw", (0.465991, 0.232995, 0.116745, 0.030242, 0.009454, 0.003715),
    ),
    "remdm .5": (
        partial(remdm, eta=0.5), MASKED, "draw", (0.465991, 0.232995, 0.135611, 0.052560, 0.021807, 0.009949),
    ),
    "duo": (duo, UNIFORM, "draw", (0.465959, 0.308589, 0.169390, 0.040372, 0.009634, 0.002373)),
    "duo greedy": (duo, UNIFORM, "argmax", (0.465999, 0.308619, 0.169410, 0.068874, 0.046882, 0.041699)),
    "duo fed p(x|z)": (duo, FULL, "draw", (0.465998, 0.348418, 0.325085, 0.315953, 0.315127, 0.315037)),
    "psi rescale": (
        partial(psi, mode="rescale"), UNIFORM, "draw", (0.465959, 0.308589, 0.171655, 0.043395, 0.012337, 0.004350),
    ),
    "psi rescale-duo": (
        partial(psi, mode="rescale-duo"), UNIFORM, "draw", (0.465959, 0.308589, 0.169582, 0.040958, 0.010324, 0.003128),
    ),
    "psi kappa": (
        partial(psi, mode="kappa", eta=0.5), UNIFORM, "draw",
        (0.465959, 0.308591, 0.182061, 0.060857, 0.024505, 0.011111),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_the_distance_to_the_language_falls_with_the_steps(name):
    process, network, end, distances = GOLDEN[name]
    for steps, expected in zip((1, 2, 4, 16, 64, 256), distances, strict=True):
        found = distance(output_law(Chain(process(steps), 2, end=end), network))
        assert found == pytest.approx(expected, abs=1e-5), steps


# ----------------------------------------------------------------------------------------------------------------------
# One token, whose prior is all there is to know

PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
OF_ONE_TOKEN = {
    "mdlm": mdlm(5),
    **{f"remdm {eta}": remdm(5, eta=eta) for eta in (0.0, 0.3, 1.0)},
    "remdm cap": remdm(5, schedule="cap", eta=0.2),
    "remdm loop": remdm(20, schedule="loop", eta=0.02),
    "duo": duo(5),
    **{f"psi κ={k}": psi(5, mode="kappa", eta=k) for k in (0.0, 0.4, 1.0)},
    **{f"psi {mode}": psi(5, mode=mode, eta=0.3) for mode in ("constant", "cap", "rescale", "rescale-duo")},
    "psi loop": psi(20, mode="constant", eta=0.01, profile="loop"),
    "psi masks": psi_with_masks(5, mode="kappa", eta=0.4),
}


@pytest.mark.parametrize("name", OF_ONE_TOKEN)
def test_with_one_token_every_row_keeps_the_marginals(name):
    process = OF_ONE_TOKEN[name]
    noise = torch.tensor([0.0, 0, 0, 1] if process.absorbing else [1 / VOCAB] * VOCAB, dtype=torch.float64)
    known = torch.cat([PRIOR, torch.zeros(1)]) if process.absorbing else PRIOR
    chain, network = Chain(process, 1), ExactNetwork(PRIOR, masks=process.absorbing)
    for row, (alpha_t, alpha_s) in enumerate(process.alphas):
        before, after = (alpha * known + (1 - alpha) * noise for alpha in (alpha_t, alpha_s))
        torch.testing.assert_close(before @ transition(chain, network, row), after, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [name for name, process in OF_ONE_TOKEN.items() if process.absorbing])
def test_with_one_token_masks_end_in_its_prior(name):
    found = output_law(Chain(OF_ONE_TOKEN[name], 1), ExactNetwork(PRIOR, masks=True))
    torch.testing.assert_close(found, PRIOR, atol=1e-12, rtol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Laws of single rows


def test_duos_posterior():
    x_theta = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=torch.float64)
    z = torch.tensor([[0]])
    law = uniform_posterior(x_theta[..., 0], 0.4, 0.7, 3).law(z, x_theta, None)
    assert law.flatten().tolist() == pytest.approx([0.6122449, 0.22959184, 0.15816327], abs=1e-8)


@pytest.mark.parametrize(
    ("of_remdm", "of_psi"),
    [
        ({"schedule": "rescale", "eta": 0.3}, {"mode": "rescale", "eta": 0.3}),
        ({"schedule": "cap", "eta": 0.1}, {"mode": "cap", "eta": 0.1}),
        ({"schedule": "loop", "eta": 0.02}, {"mode": "constant", "eta": 0.02, "profile": "loop"}),
    ],
)
def test_psi_with_masks_is_remdm_where_sigma_is_at_most_the_share_of_masks(of_remdm, of_psi):
    # Beyond it κ would be negative, and Ψ has κ = 0: it masks 1 − α_s of the tokens again, where ReMDM masks more.
    steps = 12
    with_masks = psi_with_masks(steps, **of_psi)
    one, other = Chain(remdm(steps, **of_remdm), 2), Chain(with_masks, 2)
    plain, compared, different = Chain(mdlm(steps), 2), 0, 0
    for row in range(one.rows):
        (_, alpha_s), sigma = one.process.alphas[row], one.process.sigmas[row]
        if sigma > 1 - alpha_s:
            assert with_masks.kappas[row] == 0
            continue
        a, b, c = (transition(chain, MASKED, row) for chain in (one, other, plain))
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
        compared, different = compared + 1, different + (not torch.allclose(a, c))
    assert compared >= 11 and different >= 5


def test_psi_takes_eta_twice_as_the_code_of_duo_does():
    at = (0.5, 0.6)
    once, twice = (kappa(mode, 0.05, *at) for mode in ("rescale", "rescale-duo"))
    assert 1 - once == pytest.approx(0.05 * 0.8 / 0.4)
    assert 1 - twice == pytest.approx(0.05 * 0.05 / 0.4)
    assert kappa("cap", 0.05, *at) == pytest.approx(1 - 0.05 / 0.4)
    assert kappa("constant", 0.9, *at) == 0
    assert (kappa("kappa", 0.9, *at), kappa("ancestral", 0.9, *at)) == (0.9, 1)


def test_modes_of_psi_may_differ_in_three_parts_of_the_grid():
    def parts(**settings):
        kappas = psi(20, mode="kappa", eta=0.4, t_on=0.7, t_off=0.2, **settings).kappas
        assert len(kappas) == 21
        return [set(part) for part in (kappas[:6], kappas[7:16], kappas[17:20], kappas[20:])]

    assert parts() == [{0.4}, {0.4}, {0.4}, {1}]
    assert parts(profile="loop") == [{1}, {0.4}, {1}, {1}]
    assert parts(mode_high="ancestral") == [{1}, {0.4}, {0.4}, {1}]
    assert parts(mode_low="cap", profile="loop") == [{1}, {0.4}, {0}, {1}]


def test_a_middle_of_psi_begins_before_it_ends():
    with pytest.raises(InputError, match=r"t_off=0\.5 must be less than t_on=0\.1"):
        psi(5, mode_high="cap", mode_low="ancestral", t_on=0.1, t_off=0.5)
    psi(5, t_on=0.1, t_off=0.5)  # idle: all rows are of one mode


def test_alpha_rises_to_that_in_the_loop_of_psi():
    """Duo's begins at ε; with less in the loop it would fall, and weights of the mixture be negative."""
    for alpha_on in (0.0005, 0.001):
        with pytest.raises(InputError, match=rf"alpha_on={alpha_on} must be more than 0\.001, where α begins"):
            psi(5, profile="loop", alpha_on=alpha_on)
    alphas = [alpha for alpha, _ in psi(5, profile="loop", alpha_on=0.002).alphas]
    assert alphas == sorted(alphas)


@pytest.mark.parametrize(("steps", "expected"), [(32, 0.33), (256, 2.7), (1024, 10.6), (4096, 42.6)])
def test_mean_number_of_maskings_of_a_token_that_was_always_there(steps, expected):
    assert sum(remdm(steps).sigmas) == pytest.approx(expected, rel=0.03)


def test_published_eta_of_each_schedule():
    assert {name: max(remdm(50, schedule=name).sigmas) for name in ("rescale", "cap", "loop")} == {
        "rescale": 0.015, "cap": 0.008, "loop": 0.02,
    }  # fmt: skip
    assert max(remdm(50, schedule="cap", eta=0.1).sigmas) == 0.1
    assert max(remdm(50, eta=0.0).sigmas) == 0


@pytest.mark.parametrize(
    ("mode", "expected"), [("rescale-duo", (0.08, 0.62, 2.5, 10)), ("rescale", (1.1, 8.9, 35, 142))]
)
def test_mean_number_of_noisings_per_token(mode, expected):
    found = []
    for steps in (32, 256, 1024, 4096):
        process = psi(steps, mode=mode, eta=0.05)
        rows = zip(process.alphas, process.kappas, strict=True)
        found.append(sum((1 - k) * (1 - alpha_s) for (_, alpha_s), k in rows))
    assert found == pytest.approx(expected, rel=0.05)


def test_confidence_shares_sum_to_one_and_favour_the_doubtful():
    confidence = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2]], dtype=torch.float64)
    masked = torch.tensor([[False, False, True], [True, True, True]])
    shares = confidence_shares(confidence, masked)
    assert shares[0].tolist() == pytest.approx([1 / (1 + torch.e**0.8), 1 / (1 + torch.e**-0.8), 0])
    assert shares[1].tolist() == [0, 0, 0]


def test_the_loop_rises_stands_still_and_rises_again():
    process = remdm(100, schedule="loop", eta=0.02)
    alpha = [alpha_t for alpha_t, _ in process.alphas]
    inside = [sigma > 0 for sigma in process.sigmas]
    assert alpha == sorted(alpha) and alpha[0] == 0 and alpha[-1] > 0.999
    assert {round(a, 9) for a, loops in zip(alpha, inside, strict=True) if loops} == {0.9}
    assert (alpha[20], alpha[45]) == pytest.approx((0.2 * 0.9 / 0.45, 0.9), abs=1e-4)
    assert alpha[98] == pytest.approx(1 - 0.02 * 0.1 / 0.05, abs=1e-4)
    assert sum(inside) == 50 and inside.index(True) in (45, 46)


def test_a_loop_that_ends_before_it_begins_is_refused():
    with pytest.raises(InputError, match=r"t_off=0\.6 must be less than t_on=0\.5"):
        Loop.of(0.5, 0.6, 0.1)


def test_the_language_is_not_independent():
    independent = JOINT.sum(1)[:, None] * JOINT.sum(0)
    assert distance(independent) == pytest.approx(0.466, abs=1e-3)
