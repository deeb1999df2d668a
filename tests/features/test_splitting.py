"""A text in parts: each document is in one of them, the shares are as asked for, and the order hangs on the seed."""

import pytest

from ldlm.features import splitting


@pytest.fixture
def text(tmp_path):
    """A file of 1,000 documents, each of which it has twice."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"document {number % 1_000}\n" for number in range(2_000)))
    return path


def test_the_documents_are_taken_once_in_an_order_of_their_own_for_each_seed(text):
    documents = splitting.shuffled(text)
    assert sorted(documents) == sorted(f"document {number}" for number in range(1_000))
    assert splitting.shuffled(text, seed=0) == documents != splitting.shuffled(text, seed=1)
    assert documents[:3] == ["document 439", "document 621", "document 160"]  # of every version, for parts are compared


def test_each_part_has_its_share_and_no_document_of_another(text):
    documents = splitting.shuffled(text)
    parts = splitting.divided(documents, {"held-out": 0.25, "train": 0.5}, rest="scorer")
    assert {name: len(part) for name, part in parts.items()} == {"held-out": 250, "train": 500, "scorer": 250}
    assert [document for part in parts.values() for document in part] == documents


def test_json_lines_have_their_documents_in_the_field_that_is_named(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"body": "one"}\n{"body": "one"}\n')
    assert splitting.shuffled(path, "body") == ["one"]
