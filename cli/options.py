"""Command-line options made from the config dataclasses, which hold names, help, defaults and bounds.

A value comes from its flag, else `--set`, else the YAML file of `--config`, else the preset, else the dataclass. Nested
settings without a flag are reached with `--set section.key=value`.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from ldlm import config as configs
from ldlm import files
from ldlm.cli import show
from ldlm.config.fields import whole
from ldlm.errors import InputError
from ldlm.location import Location, locate

Function = Callable[..., Any]


class Command(click.Command):
    """A command whose repeatable options take several values at once: `--data a.txt b.txt` or `--data *.txt`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeatable = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        repeatable.discard("--set")
        return super().parse_args(ctx, list(_spread(args, repeatable)))


def _spread(args: Sequence[str], repeatable: set[str]) -> Iterator[str]:
    """Repeat an option's name before each further value that follows it."""
    current, has_value = None, False
    for arg in args:
        if arg.startswith("-") and arg != "-":  # "-" is standard input
            current, has_value = (arg if arg in repeatable else None), False
        elif current is not None:
            if has_value:
                yield current
            has_value = True
        yield arg


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config field with a flag: its path in the configuration, and its type."""

    path: tuple[str, ...]
    field: dataclasses.Field[Any]
    hint: Any

    @property
    def flag(self) -> str:
        """`--batch-size` for batch_size."""
        return "--" + self.path[-1].replace("_", "-")

    @property
    def parameter(self) -> str:
        """Name of the click parameter."""
        return "_".join(self.path)

    @property
    def repeatable(self) -> bool:
        """Whether the flag takes several values."""
        return typing.get_origin(self.hint) is tuple

    def option(self, note: str = "", *, default: bool = True, more: str = "") -> Function:
        """The click decorator. Values stay strings, which `from_dict` parses like those of the other sources."""
        alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if self.hint is bool else {}
        return click.option(
            self.flag,
            self.parameter,
            metavar=self._metavar(),
            help=f"{note}{self.field.metadata['help']}{self.default_in_words if default else ''}{more}",
            multiple=self.repeatable,
            default=None,
            **alone,
        )

    def _metavar(self) -> str:
        kinds = (self.hint, *typing.get_args(self.hint))
        choices = next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal), ())
        if choices and not self.repeatable:
            return "|".join(choices)
        names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "[BOOL]"}
        name = self.field.metadata["metavar"] or next((names[kind] for kind in kinds if kind in names), "NAME")
        return f"{name}..." if self.repeatable else name

    @property
    def default_in_words(self) -> str:
        """The default as help shows it; empty if there is none to show."""
        default: Any = self.field.default
        if default is None:
            default = self.field.metadata["none"]
        if self.repeatable:
            default = " ".join(map(str, default))
        return "" if default in ("", "none", dataclasses.MISSING) else f"  [default: {default}]"


def settings(cls: type, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """The fields of `cls` that have flags: its own, and those of nested dataclasses marked `flags`."""
    hints = configs.types_of(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if not dataclasses.is_dataclass(hint):
            yield Setting((*path, field.name), field, hint)
        elif field.metadata["flags"]:
            yield from settings(hint, (*path, field.name))  # type: ignore[arg-type]


def token_settings(names: Sequence[str]) -> dict[Setting, str]:
    """Settings of token-level samplers by name, each with a note that says whose it is."""
    found: dict[Setting, str] = {}
    for name in names:
        whose = configs.owners(name)
        setting = next(one for one in settings(next(iter(whose.values()))) if one.path == (name,))
        found[dataclasses.replace(setting, path=("sampler", name))] = f"for {', '.join(whose)}: "
    return found


def shared_with_rivals(setting: Setting) -> str:
    """The note on a flag of LDLM's sampler that also sets rivals' samplers; empty if none of them has the setting."""
    section, key = setting.path[0], setting.path[-1]
    others = dict(configs.owners(key)) if section == "sampler" else {}
    others.pop("LDLM", None)
    if not others:
        return ""
    told: dict[str, list[str]] = {}
    for whose, cls in others.items():
        (one,) = (other for other in settings(cls) if other.path == (key,))
        told.setdefault(f"{one.field.metadata['help']}{one.default_in_words}", []).append(whose)
    return "; ".join(["", *(f"for {', '.join(whose)}: {words}" for words, whose in told.items())])


def stage_options(
    cls: type,
    *,
    methods: bool = False,
    presets: bool = False,
    named_samplers: bool = False,
    token_samplers: Sequence[str] | None = None,
    overwrite: bool = True,
) -> Function:
    """Decorator with all options of a stage: its settings, `--config`, `--set`, `--dump-config`, `--json` and so on.

    `token_samplers` names the settings of rivals' samplers that get a flag; None if the stage takes no runs of rivals.
    The command receives one argument `options`, an `Options`, instead of the single values.
    """
    fields, of_tokens = list(settings(cls)), token_settings(token_samplers or ())

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            flags = {field.path: values.pop(field.parameter) for field in (*fields, *of_tokens)}
            shared = {name: values.pop(name, None) for name in SHARED}
            function(options=Options(cls, flags, **shared), **values)

        decorators = [
            *([_method_option()] * methods),
            *(field.option(more=shared_with_rivals(field) if token_samplers else "") for field in fields),
            *(
                [click.option("--preset", metavar="|".join(configs.PRESETS), help="start from this preset's settings")]
                * presets
            ),
            *(field.option(note, default=False) for field, note in of_tokens.items()),
            *([_named_sampler_option(token_samplers is not None)] * named_samplers),
            click.option("--config", "config_file", metavar="FILE", help="YAML file of settings; flags override it"),
            click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="any setting, e.g. --set seed=1"),
            click.option("--dump-config", is_flag=True, help="print the settings as YAML and stop"),
            click.option("--dry-run", is_flag=True, help="print what it would cost and stop"),
            *(
                [click.option("--overwrite", is_flag=True, help="replace an output made with other settings")]
                * overwrite
            ),
            click.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
        ]
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def online_options(names: Sequence[str]) -> Function:
    """Decorator with settings of `extract-features` for `--features online`, which the command receives as `online`."""
    fields = [field for field in settings(configs.ExtractConfig) if field.path[-1] in names]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            given = {field.path[-1]: values.pop(field.parameter) for field in fields}
            online = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v not in (None, ())}
            return function(online=online, **values)

        for field in reversed(fields):
            also = " or --dry-run" if field.path == ("seq_len",) else ""
            command = field.option(note=f"with --features online{also}: ")(command)
        return command

    return decorate


def more_options(cls: type, name: str) -> Function:
    """Decorator with the settings of one more class than the stage's; the command receives them as `name`."""
    fields = list(settings(cls))

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            given = {field.path[-1]: values.pop(field.parameter) for field in fields}
            given = {key: value for key, value in given.items() if value is not None}
            return function(**{name: configs.from_dict(cls, given)}, **values)

        for field in reversed(fields):
            command = field.option()(command)
        return command

    return decorate


def _method_option() -> Function:
    help = "what to train: ldlm, or on the tokens alone mdlm, duo, candi or flm  [default: ldlm]"
    return click.option("--method", metavar="|".join(configs.METHODS), help=help)


def _named_sampler_option(token_level: bool) -> Function:
    names, help = "|".join(configs.SAMPLERS), "start from the paper's sampler; other flags override it"
    if token_level:
        of_tokens = dict.fromkeys(name for fitting in configs.TOKEN_SAMPLERS.values() for name in fitting)
        rivals = "; ".join(f"{method}: {', '.join(fitting)}" for method, fitting in configs.TOKEN_SAMPLERS.items())
        names, help = "|".join([names, *of_tokens]), f"{help}. For token-level runs, the sampler ({rivals})"
    return click.option("--sampler", metavar=names, help=help)


SHARED = ("method", "preset", "sampler", "config_file", "sets", "dump_config", "dry_run", "overwrite", "as_json")


@dataclasses.dataclass(frozen=True)
class Options:
    """Values of the shared options of a command, as the user gave them."""

    cls: type
    flags: Mapping[tuple[str, ...], Any]
    method: str | None
    preset: str | None
    sampler: str | None
    config_file: str | None
    sets: tuple[str, ...]
    dump_config: bool
    dry_run: bool
    overwrite: bool | None
    as_json: bool

    def build(self, base: Mapping[str, Any] | None = None) -> Any:
        """The configuration, on top of `base`; with `--dump-config`, print it and exit."""
        cls, given, data = self.cls, self.given(), dict(base or {})
        if self.cls is configs.TrainConfig:
            cls, given = configs.of_method(self._with_method(given))
        if self.preset is not None:
            data = configs.preset_for(cls, self.preset)
        if self.sampler is not None:
            data = configs.merge(data, configs.named_sampler(self.cls, self.sampler))
        return self.dumped(configs.from_dict(cls, configs.merge(data, given)))

    def _with_method(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings with the method that --method names; `InputError` if they name another one."""
        if self.method is None:
            return given
        if given.get("method") is not None and (there := configs.method_of(given)) != self.method:
            where = self.config_file or "--set"
            raise InputError(f"--method is {self.method}, and {where} has settings of {there}; leave one of them out")
        return {**given, "method": self.method}

    def build_drawing(self, method: str, base: Mapping[str, Any] | None = None) -> Any:
        """The configuration of a stage that draws from a run of that method, on top of `base`, as in `build`."""
        return self.dumped(configs.drawing_config(self.cls, method, self.given(), named=self.sampler, base=base))

    def dumped(self, built: Any) -> Any:
        """The configuration; with `--dump-config`, print it and exit."""
        if self.dump_config:
            show.say(files.dump_yaml(configs.to_dict(built)).removesuffix("\n"))
            click.get_current_context().exit()
        return built

    def given(self) -> dict[str, Any]:
        """Settings of the configuration file, of --set and of flags."""
        file = {} if self.config_file is None else files.read_yaml(Path(self.config_file))
        file = getattr(self.cls, "of_file", dict)(file)
        return configs.merge(file, configs.assignments(self.sets), self._given())

    def _given(self) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for path, value in self.flags.items():
            if value in (None, ()):
                continue
            nested: Any = list(value) if isinstance(value, tuple) else value
            for part in reversed(path):
                nested = {part: nested}
            given = configs.merge(given, nested)
        return given

    def show(self, result: Any, table: Callable[[], str]) -> None:
        """Print the result as JSON with --json, else the text that `table` returns."""
        show.say(show.json_line(result) if self.as_json else table())

    def show_plan(self, plan: Mapping[str, Any]) -> None:
        """Print the result of a dry run."""
        self.show(plan, lambda: show.pairs(plan))


def changed(config: Any, names: Iterable[str]) -> list[str]:
    """The flags of the settings, of these, that are not as by default."""
    default = type(config)()
    return [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != getattr(default, name)]


def require(value: str | None, flag: str, example: str) -> Path:
    """A required path; `InputError` with an example when it is missing."""
    if value is None:
        raise InputError(f"{flag} is missing; for example {flag} {example}")
    return Path(value)


def require_place(value: str | None, flag: str, example: str) -> Location:
    """A required path, or prefix of an object store; `InputError` with an example when it is missing."""
    return locate(value) if value is not None and "://" in value else require(value, flag, example)


def path_option(flag: str, help: str, *, metavar: str = "DIR", anywhere: bool = False) -> Function:
    """An option for a path, which the stage checks; with `anywhere`, it may be in an object store.

    Optional to click, so that --dump-config works without it.
    """

    def checked(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
        if value is not None and "://" in value and not anywhere:  # it would become a folder of that name
            raise InputError(f"{flag} {value} is in an object store, where only feature stores can be; give a path")
        if value is not None and value.endswith("/") and metavar.startswith("F") and not Path(value).is_dir():
            raise InputError(f"{value} is the name of a folder; {flag} names the file, without / at its end")
        return None if value is None else whole(value, flag)

    return click.option(flag, metavar=metavar, default=None, help=help, callback=checked)


def method_of(run: str | None) -> str:
    """The method of a run or exported model; LDLM if none is given."""
    if run is None:
        return configs.LDLM
    from ldlm.baselines import opening

    return opening.method_at(Path(run))


def default_settings(run: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that an exported model or a distilled run brings with it; those given, the user's, override them."""
    if run is None:
        return {}
    from ldlm.baselines import opening

    return opening.defaults(Path(run), given.get("checkpoint"))
