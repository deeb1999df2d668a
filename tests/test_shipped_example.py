"""The models in examples: what they draw is what the README shows, within the size that sources may have."""

import re
import subprocess
from pathlib import Path

import pytest

from ldlm import LDLM

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("stories", "novels")
MEGABYTES = 12  # of each
LEAST_ALIKE = 0.9  # of the words: sums are rounded otherwise on other processors


def words(text: str) -> list[str]:
    return text.split()


def shown(model: str) -> list[list[str]]:
    """The words of the texts that the README shows, by their order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        rf"^\$ ldlm sample --run examples/{model} --num-samples \d\n(.*?)^```", readme, re.DOTALL | re.M
    )
    return [words(text) for text in re.split(r"^seed \d+$", block, flags=re.M)[1:]]


def alike(mine: list[str], theirs: list[str]) -> float:
    """Share of the words that are the same at the same place."""
    return sum(a == b for a, b in zip(mine, theirs, strict=False)) / max(len(mine), len(theirs))


@pytest.mark.parametrize("model", MODELS)
def test_it_draws_the_texts_of_the_readme(model, succeed):
    texts = shown(model)
    drawn = succeed("sample", "--run", ROOT / "examples" / model, "--num-samples", len(texts), "--device", "cpu")[
        "texts"
    ]
    assert len(drawn) == len(texts) == 5
    for row, words_shown in zip(drawn, texts, strict=True):
        assert alike(words(row["text"]), words_shown) >= LEAST_ALIKE, row["text"]


@pytest.mark.parametrize("model", MODELS)
def test_it_opens_in_python_and_draws_the_same(model):
    (text,) = LDLM.from_pretrained(ROOT / "examples" / model).sample(1, seed=0)
    assert alike(words(text), shown(model)[0]) >= LEAST_ALIKE


def test_the_text_is_divided_in_one_place_into_parts_that_share_nothing(tmp_path):
    folder, novels = ROOT / "docs/example", tmp_path / "novels.txt"
    for script in ("make.sh", "scorers.sh"):
        shown = (folder / script).read_text(encoding="utf-8")
        assert 'sh "$split" "$novels"' in shown and "awk" not in shown
    long = [
        f"Paragraph {number} of a novel that goes on for sixty characters or a few more." for number in range(1, 101)
    ]
    novels.write_text("".join(f"{line}\n" for line in [*long, "Short."]))
    subprocess.run(["sh", folder / "split.sh", novels], cwd=tmp_path, check=True)
    parts = [(tmp_path / f"{name}.txt").read_text().splitlines() for name in ("train", "scorer", "held-out")]
    assert [len(part) for part in parts] == [60, 35, 5]
    assert sorted(line for part in parts for line in part) == sorted(long)
    assert parts[2] == [long[number - 1] for number in (19, 39, 59, 79, 99)]


def test_they_are_small_and_have_cards_that_say_what_they_read():
    for model, text in {"novels": "public domain", "stories": "ldlm stories"}.items():
        folder = ROOT / "examples" / model
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MEGABYTES * 10**6
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert text in card
        assert "bf16" in card
        assert "license: apache-2.0" in card and "No licence" not in card
