"""Settings of the stages that draw texts, by the method of the run that they draw from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ldlm.config.baselines import TOKEN_SAMPLERS, SamplerOfTokens, idle
from ldlm.config.export import ExportConfig
from ldlm.config.fields import from_dict, merge, names_of, types_of
from ldlm.config.methods import LDLM, TokenExportConfig, TokenSampleConfig, token_sampler
from ldlm.config.model import SamplerConfig
from ldlm.config.stages import SampleConfig, named_sampler
from ldlm.errors import InputError

# Settings of a stage for token-level runs.
OF_TOKENS: dict[type, type] = {SampleConfig: TokenSampleConfig, ExportConfig: TokenExportConfig}
ETA_BELONGS_TO = ("schedule", "mode")  # settings of rivals' samplers, each with an η of its own
SOLVER_OF = {"eta": "ddim", "beta_clip": "euler-maruyama"}  # settings of LDLM's sampler that one solver alone has


def drawing_config(
    cls: type, method: str, given: Mapping[str, Any], *, named: str | None = None, base: Mapping[str, Any] | None = None
) -> Any:
    """Settings of a stage for a run of that method: `cls` for LDLM, and the class that `OF_TOKENS` has for a rival.

    `given` are the user's own, on top of the sampler `named`, on top of `base`. `InputError` for what does not exist,
    is out of bounds, or is a setting of other methods.
    """
    if method == LDLM:
        return _of_latents(cls, given, named, base or {})
    return _of_tokens(method, cls, given, named, base or {})


def _of_latents(cls: type, given: Mapping[str, Any], named: str | None, base: Mapping[str, Any]) -> Any:
    _check_owner(_sampler(given), SamplerConfig, "LDLM")
    start = {} if named is None else named_sampler(cls, named)
    rest = {key: value for key, value in base.items() if key not in start}  # the sampler of the base is another one
    made: Any = from_dict(cls, merge(rest, start, given))
    for key, solver in SOLVER_OF.items():
        if key in _sampler(given) and made.sampler.solver != solver:
            _check_changes(made.sampler, key, "solver")
    return made


def _of_tokens(method: str, cls: type, given: Mapping[str, Any], named: str | None, base: Mapping[str, Any]) -> Any:
    _check_latents(method, cls, given)
    own = merge(_sampler(given), {} if named is None else {"name": named})
    start = _fitting(base.get("sampler", {}), own)
    settings = merge(start, own)
    name = settings.get("name", next(iter(TOKEN_SAMPLERS[method])))
    if name in list(TOKEN_SAMPLERS[method]):
        _check_owner(own, TOKEN_SAMPLERS[method][name], f"{name} of {method}")
    chosen = OF_TOKENS[cls]
    rest = {key: value for key, value in merge(base, given).items() if key != "sampler"}
    if "method" in names_of(chosen):
        rest["method"] = method
    made = token_sampler(method, settings)
    _check_used(made, own)
    return replace(from_dict(chosen, rest), sampler=made)


def _check_latents(method: str, cls: type, given: Mapping[str, Any]) -> None:
    """`InputError` for settings that only runs of LDLM have, by the options that give them."""
    own = [name for name in given if name in names_of(cls) and name not in names_of(OF_TOKENS[cls])]
    if found := [option for name in own for option in _options(cls, name, given[name])]:
        are, them = ("is", "it") if len(found) == 1 else ("are", "them")
        raise InputError(
            f"{', '.join(found)} {are} for runs of LDLM, and this one is of {method}, which has no latents; leave "
            f"{them} out"
        )


def _options(cls: type, name: str, value: Any) -> list[str]:
    """The options that give a setting, or the settings of a section; the section's name if there are none in it."""
    section, names = types_of(cls)[name], [name]
    if isinstance(section, type) and is_dataclass(section):
        names = [each for each in value if each in names_of(section)] if isinstance(value, Mapping) else []
        if not names:
            return [name]
    return [f"--{each.replace('_', '-')}" for each in names]


def _fitting(start: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the user's `own` override: none of another sampler, and no η of another schedule."""
    if own.get("name", start.get("name")) != start.get("name"):
        return {}
    other = any(own.get(key, start.get(key)) != start.get(key) for key in ETA_BELONGS_TO)
    return {key: value for key, value in start.items() if key != "eta" or not other}


def _check_used(sampler: SamplerOfTokens, own: Mapping[str, Any]) -> None:
    """`InputError` if the user sets something that has no effect given the other settings."""
    for key, because_of in idle(sampler).items():
        if key in own:
            _check_changes(sampler, key, because_of)


def _check_changes(sampler: SamplerConfig | SamplerOfTokens, key: str, because_of: str) -> None:
    """`InputError` for a setting that has no effect because of another one, unless it has its default."""
    default = {field.name: field.default for field in fields(sampler)}
    if getattr(sampler, key) != default[key]:
        raise InputError(
            f"sampler.{key} changes nothing with sampler.{because_of}={getattr(sampler, because_of)}; leave it out, "
            f"or choose another {because_of}"
        )


def _sampler(given: Mapping[str, Any]) -> Mapping[str, Any]:
    found = given.get("sampler", {})
    if not isinstance(found, Mapping):
        raise InputError(f"sampler must be a mapping of settings, not {found!r}")
    return found


def _check_owner(given: Mapping[str, Any], cls: type, whose: str) -> None:
    """`InputError` for a setting of other samplers than `cls`."""
    for key in given:
        if key not in names_of(cls) and (others := owners(key)):
            raise InputError(
                f"sampler.{key} is a setting of {', '.join(others)}, and not of {whose}, which has "
                f"{', '.join(name for name in names_of(cls) if name != 'name')}"
            )


def owners(key: str) -> dict[str, type]:
    """The samplers that have a setting of this name, each with the class that declares it.

    They are called `LDLM`, `duo` if all samplers of a method have it, and otherwise like `psi of duo`.
    """
    found: dict[str, type] = {"LDLM": SamplerConfig} if key in names_of(SamplerConfig) else {}
    for method, fitting in TOKEN_SAMPLERS.items():
        have = {name: cls for name, cls in fitting.items() if key in names_of(cls)}
        if have and have == fitting:
            found[method] = next(iter(have.values()))
        else:
            found |= {f"{name} of {method}": cls for name, cls in have.items()}
    return found
