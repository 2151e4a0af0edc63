"""Options: types, ranges, and the words in which a wrong value is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import pytest

from gnewton.errors import InputError
from gnewton.options import (
    ABSENT,
    Rule,
    declaration,
    default_of,
    did_you_mean,
    listing,
    nearest,
    option,
    option_of,
    show,
    validate,
    violations,
)


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (Rule(), [0, -1.5, 1e300, None, "x", True], [float("nan"), float("inf"), float("-inf")]),
        (Rule(above=0), [1, 1e-300, None], [0, 0.0, -1, float("nan")]),
        (Rule(at_least=0), [0, 1], [-1, -1e-300]),
        (Rule(below=1), [0.999, -5], [1, 1.0, 2]),
        (Rule(at_most=1), [1, 0], [1.0000001]),
        (Rule(choices=("a", "b")), ["a", "b", None], ["c", "A", "", 1]),
        (Rule(at_least=0, length=2), [[0, 1], (2, 3)], [[0], [0, 1, 2], [0, -1], []]),
        (Rule(at_least=1), [[1, 2], []], [[1, 0], [float("nan")]]),
    ],
)
def test_rule(rule, right, wrong):
    assert [value for value in right if not rule.admits(value)] == []
    assert [value for value in wrong if rule.admits(value)] == []


@pytest.mark.parametrize(
    ("rule", "value", "words"),
    [
        (Rule(), 1.0, "a finite number"),
        (Rule(at_least=1), 0, "a whole number >= 1"),
        (Rule(at_least=0, below=2**32), 0, "a whole number >= 0 and < 4294967296"),
        (Rule(above=0, at_most=0.5), 1.0, "a finite number > 0 and <= 0.5"),
        (Rule(choices=("a", "b")), "c", "one of a, b"),
        (Rule(at_least=0, length=2), [0.5], "a list of 2 entries, each a finite number >= 0"),
        (Rule(at_least=1), [0], "a list, each a whole number >= 1"),
    ],
)
def test_rule_in_words(rule, value, words):
    assert rule.describe(value) == words


@dataclass(kw_only=True)
class Inner:
    size: int = option(at_least=1)
    names: list[str] = option(["a"], help="of the parts")


@dataclass(kw_only=True)
class Outer:
    rate: float = option(above=0)
    kind: str = option(choices=("fast", "slow"))
    inner: Inner = option(Inner)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.kind == "fast" and self.inner.size > 5:
            yield "inner.size", "must be <= 5 where kind=fast"


@dataclass(kw_only=True)
class Other(Outer):
    rate: float = option_of(Outer, "rate", 0.5, help="another help")
    kind: str = option_of(Outer, "kind", "slow")


def test_a_field_holds_all_there_is_to_say():
    size, names = fields(Inner)
    assert (default_of(size), default_of(names)) == (ABSENT, ["a"])
    assert default_of(names) is not default_of(names)
    assert declaration(names).help == "of the parts"
    assert declaration(size).before is ABSENT


def test_an_option_like_another_keeps_its_rule():
    rate, kind, _ = fields(Other)
    assert (default_of(rate), declaration(rate).help) == (0.5, "another help")
    assert declaration(rate).rule.above == 0
    assert (default_of(kind), declaration(kind).rule.choices) == ("slow", ("fast", "slow"))
    assert default_of(fields(Outer)[0]) is ABSENT


def test_violations_name_the_whole_path():
    wrong = Outer(rate=0.0, kind="fsat", inner=Inner(size=0))
    assert list(violations(wrong, "part")) == [
        "part.rate=0.0: must be a finite number > 0",
        "part.kind=fsat: must be one of fast, slow; did you mean 'fast'?",
        "part.inner.size=0: must be a whole number >= 1",
    ]


def test_conflicts_between_options():
    assert list(violations(Outer(rate=1.0, kind="fast", inner=Inner(size=6)))) == [
        "inner.size=6: must be <= 5 where kind=fast"
    ]


def test_validate_raises_once_for_all():
    with pytest.raises(InputError, match=r"rate=-1\.0.*\n.*size=0"):
        validate(Outer(rate=-1.0, kind="slow", inner=Inner(size=0)))
    validate(Outer(rate=1.0, kind="slow", inner=Inner(size=9)))


def test_words():
    assert did_you_mean("sdg", ["sgd", "adam"]) == "; did you mean 'sgd'?"
    assert did_you_mean("zzz", ["sgd", "adam"]) == ""
    assert nearest("momentm", ["lr", "momentum"]) == "momentum"
    assert listing(["a", "b"]) == "a, b"
    assert listing([str(i) for i in range(5)], limit=3) == "0, 1, 2, … (2 more)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (False, "false"), ([1, None], "[1,null]"), (0.1, "0.1"), ("x", "x")],
)
def test_show(value, text):
    assert show(value) == text
