"""Types of settings: accepted values, refused values, and messages."""

import argparse
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Len

from ldm.values import (
    Count,
    FolderName,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    SamplerName,
    Seed,
    Text,
    TimestepInterval,
    Unaffecting,
    allowed,
    option,
    problem_with,
)

Devices = Literal["auto", -1] | Count | Annotated[list[NonNegativeInt], Len(1)]

CASES = [
    (Count, [1, 5], [0, 1.5, 1.0, True, "3", None, [1]]),
    (Count | None, [1, None], [0, "x"]),
    (float, [1, 1.5, -1e30], [math.nan, math.inf, -math.inf, True, "1", None]),
    (PositiveFloat, [1e-30], [0, -1]),
    (Probability, [0, 0.5, 1], [7, -1, 1.0001, "a"]),
    (Seed, [0, 2**63 - 1], [2**63, -1, "a", 1.5]),
    (bool, [True, False], [1, 0, "true", None]),
    (str, ["a", ""], [1, True, None, {"x": None}]),
    (Text, ["a"], ["", "  ", 1]),
    (FolderName, ["a", "a b"], ["", ".", "..", "a/b", "a\\b", "a\0", "\ud800", "é" * 200, 1]),
    (Sequence[str], [["a"], []], ["a", [1], 3]),
    (TimestepInterval | None, [None, [1, 2]], [[2, 1], [1, 1], [1], [1, 2, 3], [1, "a"], [-1, 2], 5]),
    (SamplerName, ["ddim"], ["dim", 3, None]),
    (Devices, ["auto", -1, 2, [0]], [0, -2, [], "x", [-1], True]),
    (Mapping[str, Any], [{}, {"a": 1}], [[], 3]),
    (Callable[..., int], [len], [3, {"a": 1}]),
    (Annotated[Count, Unaffecting], [1], [0]),
]


@pytest.mark.parametrize(("annotation", "right", "wrong"), CASES, ids=[str(case[0])[:40] for case in CASES])
def test_right_and_wrong_values(annotation, right, wrong):
    assert [value for value in right if problem_with(value, annotation)] == []
    assert [value for value in wrong if not problem_with(value, annotation)] == []
    for value in wrong:
        assert "\n" not in problem_with(value, annotation)


def test_a_problem_says_the_value_what_is_allowed_and_the_nearest_word():
    assert problem_with(0, Count | None) == "is 0: it must be a whole number of at least 1, or null"
    assert problem_with(True, Probability) == "is true: it must be a number from 0 to 1"
    assert problem_with(None, float) == "is null: it must be a finite number"
    assert problem_with("dpmpp_2", SamplerName).endswith("; did you mean 'dpmpp_2m'?")
    assert len(problem_with("x" * 10_000, Count)) < 200


def test_everything_allowed_has_words():
    for annotation, _, _ in CASES:
        assert "typing" not in allowed(annotation)
        assert "<" not in allowed(annotation)


def test_options_of_the_command_line():
    assert option(Seed)("42") == 42
    assert option(PositiveFloat)("1e-3") == 0.001
    assert option(SamplerName)("ddim") == "ddim"
    for annotation, word in [
        (Seed, str(2**64)),
        (NonNegativeInt, "-3"),
        (float, "nan"),
        (float, "inf"),
        (Probability, "-5"),
        (Count, "0"),
        (Count, "1.5"),
        (Count, ""),
        (SamplerName, "dim"),
    ]:
        with pytest.raises(argparse.ArgumentTypeError, match="it must be"):
            option(annotation)(word)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("main", ["--seed", str(2**64)]),
        ("main", ["--seed", "-1"]),
        ("scripts.rare_tokens", ["--seed", str(2**64)]),
        ("scripts.rare_tokens", ["--count", "-3"]),
        ("scripts.rare_tokens", ["--ids", "-1", "5"]),
        ("scripts.benchmark_speed", ["--rounds", "0"]),
        ("scripts.benchmark_speed", ["--size", "1.5"]),
        ("scripts.figure", ["--run", "x", "--zoom", "0"]),
        ("scripts.judge_base", ["--scale", "nan"]),
        ("scripts.judge_features", ["--count", "abc"]),
    ],
)
def test_programs_refuse_options_that_cannot_be_in_one_line(program, words, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(program).main(words)
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("error: argument -")
    assert ": it must be " in told.err
