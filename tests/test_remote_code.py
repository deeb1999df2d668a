"""Code that comes with a model, tokenizer, configuration or dataset is never run, whatever stands on stdin."""

import ast
import inspect
import json
import shutil
from pathlib import Path

import pytest
from hub_server import HubServer
from sessions import line, result, session

from ldlm import files
from ldlm.config import ExportConfig

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("ldlm", "stages", "cli", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
CPU = ("--device", "cpu", "--json")
NEVER = "ldlm never runs code that comes with a"


# ----------------------------------------------------------------------------------------------------------------------
# Every call that loads something

# What loads a model, configuration, tokenizer or dataset, in transformers and datasets.
LOADERS = {"from_pretrained", "from_config", "for_model", "load_dataset", "load_dataset_builder", "load_from_disk"}
LOADERS |= {"get_class_from_dynamic_module", "get_dataset_config_names", "get_dataset_split_names"}
OUR_OWN = {"LDLM.from_pretrained"}  # reads JSON and safetensors
WITHOUT_THE_OPTION = {"load_dataset_builder"}


def loaders(tree):
    """(what is called or passed on, the call or None) of every mention of a loader."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = ast.unparse(node)
            if name.split(".")[-1] in LOADERS and name not in OUR_OWN:
                yield name, calls.get(id(node))


def test_every_loader_is_called_without_remote_code():
    found = [one for path in SOURCES for one in loaders(ast.parse(path.read_text(encoding="utf-8")))]
    for name, call in found:
        assert call is not None, f"{name} is passed on, where nobody sees how it is called"
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        if name not in WITHOUT_THE_OPTION:
            assert ast.unparse(options["trust_remote_code"]) == "False", ast.unparse(call)
    assert {name.split(".")[-1] for name, _ in found} == {"from_pretrained", "load_dataset", "load_dataset_builder"}


def test_what_lacks_the_option_has_none():
    import datasets

    for name in WITHOUT_THE_OPTION:
        assert "trust_remote_code" not in inspect.signature(getattr(datasets, name)).parameters


def test_no_process_of_python_imports_from_the_folder_that_it_starts_in():
    interpreters = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable"
    ]
    assert len(interpreters) > 5
    for command in map(ast.unparse, interpreters):
        # A benchmark is a module of the folder that it is called in.
        assert "'-P'" in command or "'-m', 'benchmarks." in command, command


# ----------------------------------------------------------------------------------------------------------------------
# Planted code


def plant(folder, mark, *, model=None, tokenizer=None, known=False):
    """Let a model folder refer to modules that leave a mark; `known` keeps an architecture of transformers."""
    touch = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    conf = "from transformers import GPT2Config\nclass MyConfig(GPT2Config):\n    model_type = 'my_arch'\n"
    network = "from transformers import GPT2LMHeadModel\nfrom .conf import MyConfig\n"
    network += "class MyModel(GPT2LMHeadModel):\n    config_class = MyConfig\n"
    words = "from transformers import PreTrainedTokenizerFast\nclass MyTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    for name, code in (("conf", conf), ("mod", network), ("tok", words)):
        (folder / f"{name}.py").write_text(touch + code)
    for file, auto_map, unknown in (
        ("config.json", model, {"model_type": "my_arch", "architectures": ["MyModel"]}),
        ("tokenizer_config.json", tokenizer, {"tokenizer_class": "MyTokenizer"}),
    ):
        if auto_map is not None:
            described = json.loads((folder / file).read_text()) | {"auto_map": auto_map} | ({} if known else unknown)
            (folder / file).write_text(json.dumps(described))
    (folder / "artifact.json").unlink(missing_ok=True)
    return folder


MODEL = {"AutoConfig": "conf.MyConfig", "AutoModel": "mod.MyModel", "AutoModelForCausalLM": "mod.MyModel"}
ELSEWHERE = {key: f"me/code--{reference}" for key, reference in MODEL.items()}
KERNELS = {"attn_implementation": "me/kernels"}
TOKENIZER = {"AutoTokenizer": [None, "tok.MyTokenizer"]}


@pytest.fixture(scope="module")
def mark(tmp_path_factory):
    """The file that is there once code has run."""
    return tmp_path_factory.mktemp("mark") / "CODE_RAN"


@pytest.fixture(scope="module")
def planted(gpt2, trained, mark, tmp_path_factory):
    """Folders with code, by what it would be."""
    from ldlm.stages import export

    root = tmp_path_factory.mktemp("planted")
    kinds = {
        "model": {"model": MODEL},
        "elsewhere": {"model": ELSEWHERE},
        "tokenizer": {"tokenizer": TOKENIZER},
        "oldtokenizer": {"tokenizer": TOKENIZER["AutoTokenizer"]},
        "both": {"model": MODEL, "tokenizer": TOKENIZER},
        "known": {"model": MODEL, "tokenizer": TOKENIZER, "known": True},
    }
    found = {name: plant(Path(shutil.copytree(gpt2, root / name)), mark, **how) for name, how in kinds.items()}
    for kind, described in (("kernels", KERNELS), ("nested", {"text_config": KERNELS})):
        found[kind] = Path(shutil.copytree(gpt2, root / kind))
        config = json.loads((gpt2 / "config.json").read_text())
        (found[kind] / "config.json").write_text(json.dumps(config | described))
    for kind in ("tokenizer", "oldtokenizer"):  # alone: beside a known model its own kind of tokenizer would be taken
        (found[kind] / "config.json").unlink()
    found["run"] = Path(shutil.copytree(trained, root / "run"))
    plant(found["run"] / "tokenizer", mark, tokenizer=TOKENIZER)
    found["exported"] = export.run(ExportConfig(), trained, root / "exported").path
    plant(found["exported"] / "tokenizer", mark, tokenizer=TOKENIZER)
    described = files.read_digested(found["exported"] / "config.json", "")
    names = ["model.safetensors", *(f"tokenizer/{path.name}" for path in (found["exported"] / "tokenizer").iterdir())]
    described["sha256"] = {name: files.sha256_file(found["exported"] / name) for name in names}
    (found["exported"] / "config.json").write_text(files.dump_digested(described))
    return found


@pytest.fixture(scope="module")
def scripts(few_lines, mark, tmp_path_factory):
    """A dataset folder with a script beside its data, and the script alone."""
    folder = tmp_path_factory.mktemp("scripts") / "corpus"
    folder.mkdir()
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nimport datasets\n"
    code += "class Corpus(datasets.GeneratorBasedBuilder):\n    pass\n"
    (folder / "corpus.py").write_text(code)
    shutil.copy(few_lines, folder / "train.txt")
    return [folder, folder / "corpus.py"]


def refusing(planted, scripts, texts, store, trained, out):
    """(command, the folder that its refusal names) for everything that takes a model, tokenizer or dataset."""
    few = ("--budgets", 2, "--solvers", "heun", "--grids", "time", "--guidances", 1, "--screen-texts", 2, "--texts", 2)
    for kind in ("model", "elsewhere", "both", "kernels", "nested"):
        folder = planted[kind]
        yield ("extract-features", "--data", texts, "--encoder", folder, "--output", out, *CPU), folder
        yield ("evaluate", texts, "--scorer", folder, *CPU), folder
    for kind in ("tokenizer", "oldtokenizer", "both"):
        yield ("pretrain-encoder", "--data", texts, "--tokenizer", planted[kind], "--output", out, *CPU), planted[kind]
    yield ("sweep", "--run", trained, "--scorer", planted["both"], *few, "--output", out, *CPU), planted["both"]
    yield (
        (
            "interpolate",
            "--run",
            trained,
            "--features",
            store,
            "--pairs",
            2,
            "--scorer",
            planted["both"],
            "--output",
            out,
            *CPU,
        ),
        planted["both"],
    )
    for option in ("--encoder", "--scorer"):
        yield ("quickstart", option, planted["both"], "--text", texts, "--output", out, "--json"), planted["both"]
    for kind in ("run", "exported"):
        yield (
            ("sample", "--run", planted[kind], "--num-samples", 1, "--output", out / "s", *CPU),
            planted[kind] / "tokenizer",
        )
    for place in scripts:
        yield ("extract-features", "--dataset", place, "--encoder", planted["known"], "--output", out, *CPU), place


def test_no_command_runs_code_or_asks_whether_to(
    planted, scripts, few_lines, store, trained, gpt2, succeed, mark, tmp_path
):
    commands = list(refusing(planted, scripts, few_lines, store, trained, tmp_path / "out"))
    evaluate = ("evaluate", few_lines, "--max-tokens", 16, "--device", "cpu")
    known = (*evaluate, "--scorer", planted["known"], "--json")
    *refused, read = session([*(command for command, _ in commands), known], said="y\n" * 1000)
    for (command, place), one in zip(commands, refused, strict=True):
        said = line(one)
        assert f"'{place}'" in said and NEVER in said, (command, said)
        assert "; use one " in said
    # An architecture that transformers has itself is read, without the code beside it.
    assert result(read)["gen_ppl"] == succeed(*evaluate, "--scorer", gpt2)["gen_ppl"]
    assert not mark.exists()


def test_code_on_the_hub_is_not_even_fetched(planted, few_lines, mark, tmp_path):
    names = [kind for kind in planted if kind not in ("known", "run", "exported")]
    with HubServer() as hub:
        for kind in names:
            hub.add(f"me/{kind}", planted[kind])
        commands = [("evaluate", few_lines, "--scorer", f"me/{kind}", *CPU) for kind in names]
        found = session(commands, said="y\n" * 1000, HF_HOME=str(tmp_path), **hub.environment)
        for kind, one in zip(names, found, strict=True):
            said = line(one)
            assert f"'me/{kind}'" in said and NEVER in said, said
        assert not [path for path in hub.asked if path.endswith(".py")]
    assert not mark.exists()
