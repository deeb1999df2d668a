"""The model in examples/novels: what it draws is what the README shows, within the size that sources may have."""

import re
import subprocess
from pathlib import Path

from ldlm import LDLM

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples/novels"
MEGABYTES = 12
LEAST_ALIKE = 0.9  # of the words: sums are rounded otherwise on other processors


def words(text: str) -> list[str]:
    return text.split()


def shown() -> list[list[str]]:
    """The words of the texts that the README shows, by their order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^\$ ldlm sample --run examples/novels --num-samples 5\n(.*?)^```", readme, re.DOTALL | re.M)
    return [words(text) for text in re.split(r"^seed \d+$", block, flags=re.M)[1:]]


def alike(mine: list[str], theirs: list[str]) -> float:
    """Share of the words that are the same at the same place."""
    return sum(a == b for a, b in zip(mine, theirs, strict=False)) / max(len(mine), len(theirs))


def test_it_draws_the_texts_of_the_readme(succeed):
    drawn = succeed("sample", "--run", MODEL, "--num-samples", 5, "--device", "cpu")["texts"]
    assert len(drawn) == len(shown()) == 5
    for row, words_shown in zip(drawn, shown(), strict=True):
        assert alike(words(row["text"]), words_shown) >= LEAST_ALIKE, row["text"]


def test_it_opens_in_python_and_draws_the_same(succeed):
    (text,) = LDLM.from_pretrained(MODEL).sample(1, seed=0)
    assert alike(words(text), shown()[0]) >= LEAST_ALIKE


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


def test_it_is_small_and_has_a_card_that_says_what_it_read():
    sizes = [path.stat().st_size for path in MODEL.rglob("*") if path.is_file()]
    assert sum(sizes) <= MEGABYTES * 10**6
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert "public domain" in card
    assert "bf16" in card
