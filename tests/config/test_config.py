"""The settings: strict from outside, unchanged through a round trip, and with the paper's values as defaults."""

import dataclasses
import typing

import pytest

from ldlm import config as configs
from ldlm import files
from ldlm.config import (
    PAPERS_SAMPLER,
    PRESETS,
    EvaluateConfig,
    ExtractConfig,
    FinetuneConfig,
    InterpolateConfig,
    PretrainConfig,
    QuickstartConfig,
    SampleConfig,
    SamplerConfig,
    SweepConfig,
    TrainConfig,
    fields,
    from_dict,
    to_dict,
)
from ldlm.errors import InputError

STAGES = (
    PretrainConfig,
    ExtractConfig,
    TrainConfig,
    FinetuneConfig,
    SampleConfig,
    InterpolateConfig,
    EvaluateConfig,
    QuickstartConfig,
)


def test_a_section_begins_with_the_settings_that_it_was_declared_with():
    @dataclasses.dataclass(frozen=True)
    class Drawing:
        sampler: SamplerConfig = fields.setting(SamplerConfig(steps=7), "how")

    @dataclasses.dataclass(frozen=True)
    class Repeated:
        sampler: SamplerConfig = fields.again(Drawing, "sampler")

    assert Drawing().sampler.steps == from_dict(Drawing, {}).sampler.steps == Repeated().sampler.steps == 7


def fields_of(cls, prefix=""):
    """(dotted name, field, type) of every leaf."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from fields_of(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, hints[field.name]


@pytest.mark.parametrize("cls", STAGES)
def test_every_setting_has_help_and_is_within_its_own_bounds(cls):
    for name, field, _ in fields_of(cls):
        assert field.metadata["help"], name
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            fields._bounded(field.default, name, field.metadata)


@pytest.mark.parametrize("cls", STAGES)
def test_every_stage_has_a_seed_and_a_device(cls):
    assert {"seed", "device"} <= {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("cls", STAGES)
def test_a_configuration_survives_the_round_trip_through_plain_data(cls):
    assert from_dict(cls, to_dict(cls())) == cls()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_training_configuration_that_survives_the_round_trip(name):
    built = from_dict(TrainConfig, PRESETS[name].overrides)
    assert from_dict(TrainConfig, to_dict(built)) == built
    assert built != TrainConfig() or name == "owt-1024"


def test_the_defaults_are_the_papers():
    c = TrainConfig()
    assert (c.steps, c.batch_size) == (1_000_000, 512)
    assert (c.optimizer.lr, c.optimizer.weight_decay, c.optimizer.eps) == (3e-4, 0.01, 1e-8)
    assert (c.optimizer.beta1, c.optimizer.beta2, c.optimizer.clip_norm) == (0.9, 0.98, 1.0)
    assert (c.optimizer.lr_start, c.optimizer.lr_warmup_steps, c.optimizer.lr_decay) == (1e-8, 5_000, "constant")
    assert c.optimizer.ema_decay == 0.9999
    assert (c.diffusion.schedule, c.diffusion.d, c.diffusion.self_conditioning) == ("tangent", 3.0, 0.5)
    assert (c.diffusion.t_min, c.diffusion.weighting) == (1e-5, "simple")
    assert (c.recipe.warmup_k, c.recipe.warmup_c, c.recipe.gamma_min) == (10.0, 0.8, 0.0)
    assert (c.recipe.reconstruction, c.recipe.loss_reduction) == ("mse", "mean")
    assert (c.recipe.warmup_steps, c.recipe.sigma_dec) == (50_000, 3.0)
    assert (c.timesteps.bins, c.timesteps.ema_decay, c.timesteps.refresh_steps) == (100, 0.99, 5_000)
    assert c.timesteps.floor == 1e-3
    a, d, w = c.model.autoencoder, c.model.denoiser, c.model.token_decoder
    assert (a.kind, a.layers, a.width, a.heads, a.output_norm) == ("resampler", 6, 768, 12, False)
    assert (d.layers, d.width, d.heads, d.time_dim) == (12, 768, 12, 256)
    assert (w.layers, w.mlp_ratio, w.mode) == (3, 4, "joint")
    s = SampleConfig(sampler=SamplerConfig(**PAPERS_SAMPLER)).sampler
    assert (s.solver, s.grid, s.t_min, s.beta_clip) == ("euler-maruyama", "time", 0.05, 0.95)
    e = ExtractConfig()
    assert (e.layer, e.stats_tokens) == (-3, 2_000_000)


@pytest.mark.parametrize(
    ("name", "steps", "warmup", "sigma_dec", "seq_len"),
    [
        ("owt-1024", 1_000_000, 50_000, 3.0, 1024),
        ("lm1b-128", 1_000_000, 25_000, 3.0, 128),
        ("owt-128", 500_000, 10_000, 1.0, 128),
        ("owt-128-main", 500_000, 10_000, 3.0, 128),
    ],
)
def test_the_papers_presets_have_the_papers_numbers(name, steps, warmup, sigma_dec, seq_len):
    built = from_dict(TrainConfig, PRESETS[name].overrides)
    assert (built.steps, built.recipe.warmup_steps, built.recipe.sigma_dec) == (steps, warmup, sigma_dec)
    assert PRESETS[name].shapes == configs.Shapes(seq_len=seq_len, hidden_dim=768, vocab_size=50_257)
    assert built.model == TrainConfig().model
    assert built.optimizer == TrainConfig().optimizer


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(InputError, match=r"'owt'.*owt-1024, lm1b-128, owt-128, owt-128-main, tiny"):
        configs.preset("owt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stepz": 3}, "unknown setting stepz; did you mean steps?"),
        ({"model": {"denoiser": {"layer": 3}}}, "denoiser.layer; did you mean model.denoiser.layers?"),
        ({"sigma_dec": 2}, "unknown setting sigma_dec; did you mean recipe.sigma_dec?"),
        ({"model": {"heads": 2}}, "model.heads; did you mean model.autoencoder.heads or model.denoiser.heads or"),
        ({"zzz": 1}, "unknown setting zzz; known here: steps, batch_size"),
        ({1: 2}, "unknown setting 1"),
        ({"steps": "many"}, "steps takes a whole number, not 'many'"),
        ({"steps": 2.5}, "steps takes a whole number, not 2.5"),
        ({"steps": "2.5"}, "steps takes a whole number, not '2.5'"),
        ({"steps": True}, "steps takes a whole number, not True"),
        ({"steps": None}, "steps takes a whole number, not None"),
        ({"steps": [3]}, "steps takes a whole number, not [3]"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"recipe": {"warmup_k": 1e-17}}, "recipe.warmup_k must be at least 1e-06, not 1e-17"),  # γ would be 0/0
        ({"steps": float("nan")}, "steps must be a finite number, not nan"),
        ({"optimizer": {"lr": "nan"}}, "optimizer.lr must be a finite number, not 'nan'"),
        ({"optimizer": {"lr": "inf"}}, "optimizer.lr must be a finite number, not 'inf'"),
        ({"optimizer": {"lr": float("-inf")}}, "optimizer.lr must be a finite number, not -inf"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr must be more than 0, not 0.0"),
        ({"optimizer": {"beta1": 1.5}}, "optimizer.beta1 must be less than 1, not 1.5"),
        ({"optimizer": {"beta2": 1}}, "optimizer.beta2 must be less than 1, not 1.0"),
        ({"steps": 10**400}, "steps must be at most 1.7976931348623157e+308, not 1000"),
        ({"seed": 2**53 + 1}, "seed must be at most 9007199254740991, not 9007199254740993"),
        ({"seed": str(2**53 + 1)}, "seed must be at most 9007199254740991, not 9007199254740993"),
        ({"seed": 10**400}, "seed must be at most 9007199254740991, not 1000"),
        ({"seed": -(2**53) - 1}, "seed must be at least 0, not -9007199254740993"),
        ({"seed": "inf"}, "seed must be a finite number, not 'inf'"),
        ({"model": 3}, "model must be a mapping of settings, not 3"),
        ({"model": None}, "model must be a mapping of settings, not None"),
        ({"model": {"autoencoder": {"kind": "mlp"}}}, "model.autoencoder.kind is one of resampler, self_attention"),
        ({"model": {"autoencoder": {"kind": ["resampler"]}}}, "model.autoencoder.kind is one of resampler"),
        ({"model": {"autoencoder": {"output_norm": "maybe"}}}, "output_norm takes true or false, not 'maybe'"),
        ({"model": {"autoencoder": {"output_norm": 1}}}, "output_norm takes true or false, not 1"),
        ({"device": 0}, "device takes a string, not 0"),
    ],
)
def test_a_bad_setting_is_refused_by_its_dotted_name(data, message):
    with pytest.raises(InputError) as error:
        from_dict(TrainConfig, data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["budgets", "solvers", "grids", "guidances", "finals", "temperatures"])
def test_an_empty_list_is_refused_where_it_leaves_nothing_to_do(name):
    with pytest.raises(InputError, match=f"{name} is an empty list; give at least one value, or leave it out"):
        from_dict(SweepConfig, {name: []})
    assert from_dict(SweepConfig, {"decoders": []}).decoders == ()


def test_a_list_setting_refuses_what_is_not_a_list_of_strings():
    with pytest.raises(InputError, match="data takes a list, not 3"):
        from_dict(ExtractConfig, {"data": 3})
    with pytest.raises(InputError, match="data takes a string, not 3"):
        from_dict(ExtractConfig, {"data": [3]})


@pytest.mark.parametrize(
    ("cls", "data", "expected"),
    [
        # PyYAML reads 3e-4 as a string, and so are all flags.
        (TrainConfig, {"optimizer": {"lr": "3e-4"}}, lambda c: c.optimizer.lr == 3e-4),
        (TrainConfig, {"steps": "7"}, lambda c: c.steps == 7 and type(c.steps) is int),
        (TrainConfig, {"steps": 7.0}, lambda c: c.steps == 7 and type(c.steps) is int),
        (TrainConfig, {"recipe": {"sigma_dec": 2}}, lambda c: type(c.recipe.sigma_dec) is float),
        (TrainConfig, {"model": {"autoencoder": {"output_norm": "Yes"}}}, lambda c: c.model.autoencoder.output_norm),
        (TrainConfig, {"model": {"autoencoder": {"num_latents": "none"}}}, lambda c: c == TrainConfig()),
        (ExtractConfig, {"stats_tokens": "all"}, lambda c: c.stats_tokens is None),
        (ExtractConfig, {"stats_tokens": None}, lambda c: c.stats_tokens is None),
        (ExtractConfig, {"data": "a.txt"}, lambda c: c.data == ("a.txt",)),
        (ExtractConfig, {"data": ["a.txt", "b.txt"]}, lambda c: c.data == ("a.txt", "b.txt")),
        (TrainConfig, {"seed": str(2**53 - 1)}, lambda c: c.seed == 2**53 - 1),
        (TrainConfig, {"steps": str(2**53 + 1)}, lambda c: c.steps == 2**53 + 1),
        (TrainConfig, {"steps": 2**53 + 1}, lambda c: c.steps == 2**53 + 1),
    ],
)
def test_a_value_is_parsed_to_the_type_of_its_field(cls, data, expected):
    assert expected(from_dict(cls, data))


def test_what_a_seed_can_not_be_is_refused_and_not_rounded():
    with pytest.raises(InputError, match="seed must be at most"):
        from_dict(SampleConfig, {"seed": str(2**70)})


def test_set_reaches_nested_settings_and_the_last_one_wins():
    data = configs.assignments(["model.denoiser.layers=3", "steps=5", "model.denoiser.layers=4", "recipe.sigma_dec=2"])
    built = from_dict(TrainConfig, data)
    assert (built.model.denoiser.layers, built.steps, built.recipe.sigma_dec) == (4, 5, 2.0)


@pytest.mark.parametrize("pair", ["steps", "=3", ""])
def test_set_without_key_or_value_shows_how_it_is_written(pair):
    with pytest.raises(InputError, match="--set takes KEY=VALUE, for example"):
        configs.assignments([pair])


def test_merging_keeps_what_is_not_overridden_and_leaves_its_arguments_alone():
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert configs.merge(base, {"a": {"y": 5}}, {"b": {"z": 1}}) == {"a": {"x": 1, "y": 5}, "b": {"z": 1}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


def test_identity_leaves_out_where_and_how_often_but_nothing_that_changes_the_weights():
    kept = configs.identity(TrainConfig())
    left_out = {"steps", "log_every", "eval_every", "eval_rows", "save_every", "keep", "plots", "device"}
    left_out |= {"accumulate", "recompute", "max_nonfinite"}
    assert set(to_dict(TrainConfig())) - set(kept) == left_out
    assert kept["optimizer"] == to_dict(TrainConfig())["optimizer"]


def test_differences_name_every_changed_leaf_and_nothing_else():
    old = {"a": {"x": 1, "y": 2}, "b": 3, "gone": 1}
    new = {"a": {"x": 1, "y": 5}, "b": 3, "new": None}
    assert configs.differences(old, new) == ["a.y: 2 -> 5", "gone: 1 -> none"]
    assert configs.differences(old, old) == []


def test_a_configuration_can_not_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 3


LITERALS = [
    (cls, name, typing.get_args(hint))
    for cls in vars(configs).values()
    if dataclasses.is_dataclass(cls) and isinstance(cls, type) and cls.__module__.startswith(configs.__name__)
    for name, hint in typing.get_type_hints(cls).items()
    if typing.get_origin(hint) is typing.Literal
]


@pytest.mark.parametrize(("cls", "name", "choices"), LITERALS)
def test_every_choice_may_be_written_in_yaml_without_quotes(tmp_path, cls, name, choices):
    """YAML reads on, off, yes, no and null as something else than words."""
    path = tmp_path / "c.yaml"
    for choice in choices:
        path.write_text(f"{name}: {choice}\n")
        assert getattr(from_dict(cls, files.read_yaml(path)), name) == choice
    if "none" in choices:
        assert getattr(from_dict(cls, {name: None}), name) == "none"
    for other in {True, False, None} - {True if "on" in choices else 0, False if "off" in choices else 0}:
        if other is not None:
            with pytest.raises(InputError, match=f"{name} is one of"):
                from_dict(cls, {name: other})


@pytest.mark.parametrize(("word", "flag"), [("on", True), ("off", False), ("Yes", True), ("no", False), ("TRUE", True)])
def test_a_flag_may_be_any_of_yamls_words(word, flag):
    assert from_dict(TrainConfig, {"recompute": word}).recompute is flag
    assert from_dict(TrainConfig, configs.assignments([f"recompute={word}"])).recompute is flag


def test_a_number_where_a_word_is_meant_is_said_to_need_quotes(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dataset: x\nrevision: 1234567\n")
    with pytest.raises(InputError, match="revision takes a string, not 1234567; in a YAML file, put it in quotes"):
        from_dict(ExtractConfig, files.read_yaml(path))
    path.write_text("dataset: x\nrevision: '1234567'\n")
    assert from_dict(ExtractConfig, files.read_yaml(path)).revision == "1234567"
