"""Tables in Markdown."""

from ldlm import markdown


def test_a_table_has_a_line_for_its_head_one_below_and_one_for_each_row():
    assert markdown.table(("a", "b"), [["1", "–"], ["", "2"]]) == "| a | b |\n|---|---|\n| 1 | – |\n|  | 2 |"
    assert markdown.table(["a"], iter([])) == "| a |\n|---|"
