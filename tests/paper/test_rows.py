"""Rows and exhibits: read strictly, as the paper prints them, and with the paper's settings at its scale."""

import pytest

from ldlm import config as configs
from ldlm.errors import InputError
from ldlm.paper import exhibits, rows, settings
from ldlm.paper.printed import Printed

# ----------------------------------------------------------------------------------------------------------------------
# The paper's settings, typed from Sections 5 to 8, Appendices B and C and SPEC 1, 2, 5 to 8

TRAINING = {
    "steps": 500_000, "batch_size": 512,
    "optimizer.lr": 3e-4, "optimizer.lr_start": 1e-8, "optimizer.lr_warmup_steps": 5_000,
    "optimizer.lr_decay": "constant", "optimizer.weight_decay": 0.01, "optimizer.beta1": 0.9, "optimizer.beta2": 0.98,
    "optimizer.eps": 1e-8, "optimizer.clip_norm": 1.0, "optimizer.ema_decay": 0.9999,
    "model.space": "ldlm",
    "model.autoencoder.kind": "resampler", "model.autoencoder.layers": 6, "model.autoencoder.width": 768,
    "model.autoencoder.heads": 12, "model.autoencoder.num_latents": None, "model.autoencoder.latent_dim": None,
    "model.autoencoder.output_norm": False,
    "model.denoiser.layers": 12, "model.denoiser.width": 768, "model.denoiser.heads": 12,
    "model.token_decoder.layers": 3, "model.token_decoder.mode": "joint",
    "diffusion.schedule": "tangent", "diffusion.d": 3.0, "diffusion.weighting": "simple",
    "diffusion.self_conditioning": 0.5,
    "recipe.reconstruction": "mse", "recipe.warmup_steps": 10_000, "recipe.warmup_k": 10.0, "recipe.warmup_c": 0.8,
    "recipe.gamma_min": 0.0, "recipe.sigma_dec": 1.0,
    "timesteps.kind": "adaptive", "timesteps.bins": 100, "timesteps.refresh_steps": 5_000,
}  # fmt: skip
STORE = {
    "encoder": "gpt2", "kind": "hidden", "layer": -3, "seq_len": 128, "validation_docs": 100_000,
    "validation_split": None, "detokenizer": "none",
}  # fmt: skip
SAMPLER = {
    "solver": "euler-maruyama", "grid": "time", "guidance": 1.0, "t_min": 0.05, "final": "x0", "temperature": 1.0
}  # fmt: skip
MAIN = {"recipe.sigma_dec": 3.0}  # "we use σ_dec = 3 in all further experiments"
UNIFORM = {"timesteps.kind": "uniform"}
CE = {"recipe.reconstruction": "ce"}


def space(name, **more):
    return {**MAIN, "model.space": name, **more}


# What each row changes: in the training, and in the features.
ROWS = {
    "table-1/ce": (CE, {}),
    "table-1/mse": ({}, {}),
    "table-1/ce-mse": ({"recipe.reconstruction": "ce+mse"}, {}),
    "table-1/encoder-hidden": (CE, {}),
    "table-1/encoder-embedding": (CE, {"kind": "embedding"}),
    "table-1/encoder-scratch": (CE, {"kind": "scratch"}),
    **{f"table-1/warmup-{n}": ({"recipe.warmup_steps": n, **UNIFORM}, {}) for n in
       (0, 5_000, 10_000, 25_000, 50_000, 100_000)},
    "table-1/uniform": (UNIFORM, {}),
    "table-1/adaptive": ({}, {}),
    **{f"table-1/sigma-{s}": ({"recipe.sigma_dec": s}, {}) for s in (0.1, 0.5, 1.0, 2.0, 3.0, 4.0)},
    "table-2/scratch": (space("scratch", **CE), {"kind": "scratch"}),
    "table-2/embedding": (space("embedding"), {"kind": "embedding"}),
    "table-2/tencdm": (space("tencdm"), {}),
    "table-2/cosmos": (space("cosmos", **{"recipe.reconstruction": "ce+mse"}), {}),
    "table-2/ldlm": (MAIN, {}),
    **{f"table-4/tencdm-{n}": (space("tencdm"), {"layer": -n}) for n in (1, 2, 3, 4)},
    **{f"table-4/cosmos-{n}": (space("cosmos", **{"recipe.reconstruction": "ce+mse"}), {"layer": -n})
       for n in (1, 2, 3, 4)},
    **{f"table-4/ldlm-{n}": (MAIN, {"layer": -n}) for n in (1, 2, 3, 4)},
    **{f"table-5/{name}": (MAIN, {}) for name in ("joint", "layers-1", "layers-2", "layers-3", "layers-6")},
    "table-6/gpt2": (MAIN, {}),
    "table-6/bert": (MAIN, {"encoder": "bert-base-uncased"}),
    "table-7/resampler": (MAIN, {}),
    "table-7/self-attention": ({**MAIN, "model.autoencoder.kind": "self_attention"}, {}),
}  # fmt: skip
LM1B = ({"steps": 1_000_000, "recipe.warmup_steps": 25_000, **MAIN},
        {"validation_docs": 0, "validation_split": "test", "detokenizer": "lm1b"})  # fmt: skip
OWT = ({"steps": 1_000_000, "recipe.warmup_steps": 50_000, **MAIN}, {"seq_len": 1_024})
ROWS["table-8/ldlm"], ROWS["table-9/ldlm"] = LM1B, OWT
ROWS["table-3/ldlm"] = ({**OWT[0], "batch_size": 16, "model.token_decoder.mode": "deferred"}, OWT[1])

# Noise on the decoders' input where it is not σ_dec: what each method published (SPEC 13.5).
NOISE = {"scratch": "σ_dec 0.12", "embedding": "σ_dec 0.01", "tencdm": "t ≤ 0.15", "cosmos": "cosmos"}

# Method, sampler, and what of its settings the paper or its script fixes.
RIVALS = {
    "mdlm": ("mdlm", "ancestral", {"top_p": 1.0}),
    "mdlm-p": ("mdlm", "ancestral", {"top_p": 0.9}),
    "remdm": ("mdlm", "remdm", {"top_p": 0.9, "schedule": "rescale", "eta": 0.015}),
    "duo": ("duo", "ancestral", {"top_p": 1.0}),
    "duo-p": ("duo", "ancestral", {"top_p": 0.9}),
    "duo-psi": ("duo", "psi", {"top_p": 0.9, "eta": 0.05}),
    "candi": ("candi", "cached", {}),
    "flm": ("flm", "euler", {}),
}
BUDGETS = {"table-8": (32, 64, 128, 256, 512, 1024), "table-9": (32, 64, 128, 256, 512, 1024, 2048, 4096)}


def all_rows():
    return {key: row for name in exhibits.NAMES for key, row in exhibits.load(name).rows.items()}


def setting(config, dotted):
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def of_ldlm():
    return [key for key, row in all_rows().items() if row.method == "ldlm" and not row.real and "figure" not in key]


def test_every_row_of_ldlm_has_its_settings_typed_here():
    assert sorted(of_ldlm()) == sorted(ROWS)


@pytest.mark.parametrize("key", of_ldlm())
def test_a_row_at_the_papers_scale_has_the_papers_settings(key):
    changes, features = ROWS[key]
    row = rows.load(key)
    training = settings.training(row, "paper").config
    assert {name: setting(training, name) for name in TRAINING} == {**TRAINING, **changes}
    assert isinstance(training, configs.TrainConfig) and training.recipe.edition == 4
    found = settings.store(row, "paper")
    assert {name: setting(found, name) for name in STORE} == {**STORE, **features}
    wanted = "billion-word-benchmark/lm1b" if key == "table-8/ldlm" else "Skylion007/openwebtext"
    assert (found.dataset, found.split) == (wanted, "train")
    noise = configs.decoder_noise(training.model.space, training.recipe)
    assert str(noise) == NOISE.get(training.model.space, f"σ_dec {training.recipe.sigma_dec:g}")


@pytest.mark.parametrize("key", of_ldlm())
def test_a_row_at_the_papers_scale_draws_as_the_paper_does(key):
    drawn = settings.sampling(rows.load(key), "paper", 128, 1_000, 3)
    assert (drawn.num_samples, drawn.seed, drawn.sampler.steps) == (1_000, 3, 128)
    assert {name: setting(drawn.sampler, name) for name in SAMPLER} == SAMPLER


def test_decoders_of_table_5_are_trained_as_appendix_b2_says():
    tuned = {key: settings.decoder(rows.load(key), "paper") for key in ROWS if key.startswith("table-5/")}
    assert tuned.pop("table-5/joint") is None
    assert [one.layers for one in tuned.values()] == [1, 2, 3, 6]
    assert {(one.steps, one.batch_size, one.sigma_dec) for one in tuned.values()} == {(200_000, 512, 3.0)}


@pytest.mark.parametrize("key", [key for key, row in all_rows().items() if row.method != "ldlm"])
def test_a_rival_has_the_published_settings(key):
    table, name = key.split("/")
    row, (method, sampler, fixed) = rows.load(key), RIVALS[name]
    training = settings.training(row, "paper").config
    assert (row.method, training.steps, training.batch_size) == (method, 1_000_000, 16 if table == "table-3" else 512)
    optimizer = training.optimizer
    assert (optimizer.lr, optimizer.beta2, optimizer.weight_decay, optimizer.lr_warmup_steps) == (3e-4, 0.999, 0, 2_500)
    network = training.model.denoiser
    assert (network.layers, network.width, network.heads) == (12, 768, 12)
    for budget in (64, 1_024):
        drawn = settings.sampling(row, "paper", budget, 1_000, 0).sampler
        chain = method in ("mdlm", "duo")
        assert (drawn.name, drawn.steps) == (sampler, budget - chain)
        if table != "table-3":
            assert {name: getattr(drawn, name) for name in fixed} == fixed


# ----------------------------------------------------------------------------------------------------------------------
# What the paper prints

COUNTS = {
    "table-1": 21, "table-2": 5, "table-3": 6, "table-4": 12, "table-5": 5, "table-6": 2, "table-7": 2, "table-8": 8,
    "table-9": 10,
}  # fmt: skip
# A cell of each table, read off the paper once more; of tables with budgets by evaluations.
CELLS = {
    ("table-1/real", None, "gen_ppl"): "25.7 ± 0.4",
    ("table-1/warmup-50000", None, "mauve"): "67.0 ± 3.2",
    ("table-1/sigma-4.0", None, "entropy"): "2.19 ± 0.01",
    ("table-2/tencdm", None, "mauve"): "36.6 ± 5.9",
    ("table-3/duo-psi", None, "sample_seconds"): "663",
    ("table-4/cosmos-2", None, "diversity"): "50.4 ± 0.3",
    ("table-5/layers-3", None, "entropy"): "4.22 ± 0.00",
    ("table-6/bert", None, "diversity"): "47.8 ± 0.2",
    ("table-7/self-attention", None, "mauve"): "91.9 ± 0.4",
    ("table-8/mdlm", 256, "gen_ppl"): "123.8 ± 0.6",
    ("table-8/flm", 1024, "mauve"): "64.2 ± 2.4",
    ("table-9/real", None, "entropy"): "5.436",
    ("table-9/remdm", 2048, "mauve"): "47.8 ± 5.9",
    ("table-9/ldlm", 4096, "diversity"): "23.3 ± 0.2",
    ("table-9/duo-p", 32, "entropy"): "5.416 ± 0.00",
}


def test_the_tables_have_as_many_rows_as_the_paper_and_every_cell_is_filled():
    for name, count in COUNTS.items():
        exhibit = exhibits.load(name)
        assert len(exhibit.rows) == count
        for row in exhibit.rows.values():
            budgets = {None} if row.real or not exhibit.budgets else set(BUDGETS[name])
            assert set(row.printed) == budgets, row.key
            for cells in row.printed.values():
                assert set(cells) == set(exhibit.columns), row.key


def test_figures_are_those_that_the_paper_prints():
    assert {place: rows.load(place[0]).printed[place[1]][place[2]].text for place in CELLS} == CELLS


def test_the_papers_own_figures_have_every_order_that_is_stated_of_them():
    for name in exhibits.NAMES:
        exhibit = exhibits.load(name)
        assert exhibit.statements
        for one in exhibit.statements:
            cells = [exhibit.rows[key].printed.get(one.at, {}).get(quantity) for key, quantity in one.places]
            if name.startswith("table"):
                means = [cell.mean for cell in cells]
                assert means == sorted(means) and len(set(means)) == len(means), one


# ----------------------------------------------------------------------------------------------------------------------
# Reading

GOOD = {"name": "CE", "section": "6", "preset": "owt-128"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"trian": {}}, "table-x/y: there is no key 'trian'; known are decoder, method"),
        ({"preset": "owt"}, "table-x/y: there is no preset 'owt'; choose one of owt-1024"),
        ({"method": "sedd"}, "table-x/y: there is no method 'sedd'; choose one of ldlm"),
        ({"train": 3}, "table-x/y: train takes settings, one `key: value` each, not 3"),
        ({"real": "yes"}, "table-x/y: real is true or false, not 'yes'"),
        ({"tiny": {"step": 3}}, "table-x/y, tiny: there is no key 'step'"),
        ({"tiny": {"warmup": 2}}, "table-x/y, tiny: warmup is a share of the steps from 0 to 1, not 2"),
        ({"printed": {"ppl": 3}}, "table-x/y, printed: there is no quantity 'ppl'"),
        ({"printed": {"gen_ppl": "3 +- 1"}}, "table-x/y, printed, gen_ppl is a figure like 98.5 ± 1.9, not '3 +- 1'"),
        ({"printed": {32: 3}}, "table-x/y, printed, 32: figures stand by name"),
    ],
)
def test_a_row_that_is_written_wrongly_is_refused_by_name(more, said):
    with pytest.raises(InputError) as refused:
        rows.parse("table-x/y", {**GOOD, **more})
    assert str(refused.value).startswith(said)


def test_a_row_without_a_name_and_one_that_is_not_there_are_refused():
    with pytest.raises(InputError, match="the key 'section' is missing"):
        rows.parse("table-x/y", {"name": "CE", "preset": "owt-128"})
    with pytest.raises(InputError, match="there is no row table-1/mce"):
        rows.load("table-1/mce")


def test_a_misspelt_setting_of_a_stage_is_refused_by_name():
    row = rows.parse("table-x/y", {**GOOD, "train": {"recipe": {"reconstructoin": "ce"}}})
    with pytest.raises(InputError, match=r"recipe.reconstructoin; did you mean recipe.reconstruction\?"):
        settings.training(row, "paper")


EXHIBIT = {
    "title": "T", "section": "6", "shows": "s", "columns": ["gen_ppl"],
    "groups": [{"rows": ["table-7/resampler", "table-7/self-attention"]}],
    "statements": [{"quantity": "gen_ppl", "rising": ["table-7/resampler", "table-7/self-attention"]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"colums": []}, "table-x: there is no key 'colums'"),
        ({"columns": ["ppl"]}, "table-x, columns: there is no quantity 'ppl'"),
        ({"groups": [{"rows": [], "measures": "all"}]}, "table-x, groups: measures is one of texts, paths"),
        ({"statements": [{"rising": []}]}, "table-x, statements: a statement compares a quantity of rows"),
        (
            {"statements": [{"quantity": "gen_ppl", "rising": ["table-1/ce"]}]},
            "table-x, statements: table-1/ce is",
        ),
        ({"picture": "pie"}, "table-x: there is no picture 'pie'"),
    ],
)
def test_an_exhibit_that_is_written_wrongly_is_refused_by_name(more, said):
    assert exhibits.parse("table-x", EXHIBIT).rows
    with pytest.raises(InputError) as refused:
        exhibits.parse("table-x", {**EXHIBIT, **more})
    assert str(refused.value).startswith(said)


def test_rows_are_chosen_by_key_and_by_printed_name():
    exhibit = exhibits.load("table-1")
    assert exhibit.chosen(["ce", "CE + MSE"]) == ["table-1/ce", "table-1/ce-mse"]
    assert exhibit.chosen([]) == list(exhibit.rows)
    with pytest.raises(InputError, match="Table 1 has no row 'mce'; it has real, ce, mse"):
        exhibit.chosen(["mce"])


def test_printed_figures_are_read_with_and_without_a_deviation():
    assert Printed.parse("98.5 ± 1.9", "x") == Printed("98.5 ± 1.9", 98.5)
    assert Printed.parse(100.0, "x") == Printed("100.0", 100.0)
