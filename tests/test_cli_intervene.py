"""What `tracer intervene` prints of what responds, word for word."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tracer.commands.intervene import print_patterns, print_responses

TOKENS = ["<bos>", " a", "b"]
Printed = pytest.CaptureFixture[str]


def test_what_responds_by_more_than_rounding_is_listed_the_most_first(capsys: Printed):
    before, after = torch.zeros(2, 3, 8), torch.zeros(2, 3, 8)
    before[1, 0, 0] = after[1, 0, 0] = 2000.0
    before[0, 2, 5], after[0, 2, 5] = 1.0, 1.0 + 1.9e-3  # a millionth of the largest is 2e-3
    before[0, 1, 3], after[0, 1, 3] = 1.0, 1.0 + 2.1e-3
    before[1, 2, 7], after[1, 2, 7] = 4.0, 0.5
    after[1, 1, 4] = 1.5
    change: Any = SimpleNamespace(base=SimpleNamespace(activations=before), activations=after)
    print_responses(change, TOKENS)
    assert capsys.readouterr().out.splitlines() == [
        "3 other features respond, most of all:",
        "feature\tat\tbefore\tafter",
        '1/2/7\t"b"\t4\t0.5',
        '1/1/4\t" a"\t0\t1.5',
        '0/1/3\t" a"\t1\t1.002',
        "",
    ]
    print_responses(change, TOKENS, 1)
    assert capsys.readouterr().out.splitlines()[2:] == ['1/2/7\t"b"\t4\t0.5', ""]
    after[:] = torch.arange(1, 49).reshape(2, 3, 8)
    before[:] = 0
    print_responses(change, TOKENS)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "48 other features respond, most of all:"
    assert [row.split("\t")[0] for row in said[2:-1]] == [
        *(f"1/2/{at}" for at in range(7, -1, -1)), "1/1/7", "1/1/6"
    ]  # fmt: skip
    change.base.activations = after
    print_responses(change, TOKENS)
    assert capsys.readouterr().out.splitlines()[0] == "no other feature responds"


def test_where_attention_changes_most_is_listed_the_most_first(capsys: Printed):
    before = [torch.zeros(2, 3, 3) for _ in range(2)]
    after = [one.clone() for one in before]
    before[0][1, 2, 0], after[0][1, 2, 0] = 0.5, 0.25
    before[1][0, 2, 1], after[1][0, 2, 1] = 0.125, 1.0
    after[1][1, 1, 0] = 1.5e-6
    after[1][1, 1, 1] = 0.5e-6  # rounding
    change: Any = SimpleNamespace(base=SimpleNamespace(patterns=before), patterns=after)
    print_patterns(change, TOKENS)
    assert capsys.readouterr().out.splitlines() == [
        "head\tlooks from\tat\tbefore\tafter",
        '1.0\t"b" (2)\t" a" (1)\t0.125\t1',
        '0.1\t"b" (2)\t"<bos>" (0)\t0.5\t0.25',
        '1.1\t" a" (1)\t"<bos>" (0)\t0\t1.5e-06',
        "",
    ]
    print_patterns(change, TOKENS, 1)
    assert capsys.readouterr().out.splitlines()[1:] == ['1.0\t"b" (2)\t" a" (1)\t0.125\t1', ""]
    for one in after:
        one[:] = 0.25
    print_patterns(change, TOKENS)
    assert len(capsys.readouterr().out.splitlines()) == 12
    change.patterns = before
    print_patterns(change, TOKENS)
    assert capsys.readouterr().out.splitlines()[0] == "no attention changes"
