"""Every command line is accepted or refused with one message; hypothesis searches for counterexamples."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gnewton.cli.main import main
from tests.thorough import count

NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["1e999", "-1e999", "0x10", "1_0", "١", "9" * 400, "1e-400", ".5.", "+-1"]),
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
SNIPPETS = st.sampled_from(
    ["", "null", "[]", "{}", "[1,", "{a:", "${seed}", "${nothing}", "${oc.env:HOME}", "'", '"', "\\", "a=b",
     "???", "{_target_: os.system}", "[[[]]]", "{a: {b: {c: 1}}}", "true", "NaN", "range(3)", "glob(*)",
     "!!python/name:os"]
)  # fmt: skip
VALUES = st.one_of(NUMBERS, TEXTS, SNIPPETS)
PREFIXES = st.sampled_from(["", "", "", "+", "++", "~"])


@pytest.fixture(scope="module")
def names():
    """Every option and group of the default run."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["train", "--cfg", "job"]) == 0
    options = []

    def collect(node, path):
        for key, value in node.items():
            options.append(f"{path}{key}")
            if isinstance(value, dict):
                collect(value, f"{path}{key}.")

    collect(OmegaConf.to_container(OmegaConf.create(out.getvalue())), "")
    return options


def test_an_override_is_taken_or_refused_in_one_message(names, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr("gnewton.experiment.run.run", lambda *composed: None)  # all is checked before it
    keys = st.one_of(st.sampled_from(names), st.sampled_from(names).map(lambda name: name[:-1]), TEXTS)
    keys = keys.filter(lambda key: not key.startswith(("-", "hydra")))
    overrides = st.tuples(PREFIXES, keys, VALUES).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}")
    codes = []

    @settings(
        max_examples=count(20, 200),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @example(["+="])
    @example(["+=[]"])
    @example(["~"])
    @example(["seed=" + "9" * 400])
    @given(st.lists(overrides, min_size=1, max_size=2))
    def check(arguments):
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = main(["train", *arguments])
        codes.append(code)
        assert code in (0, 2), (arguments, err.getvalue())
        if code == 2:
            assert err.getvalue().startswith("gnewton: "), arguments
            assert "Traceback" not in err.getvalue(), arguments
            assert err.getvalue().count("gnewton: ") == 1, arguments

    check()
    assert codes.count(2) >= 10
    assert list(tmp_path.iterdir()) == []
