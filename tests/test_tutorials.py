"""Every command and block of Python in docs/tutorials/ runs in its order, on fewer steps and samples."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
PAGES = sorted(path.stem for path in TUTORIALS.glob("*.md"))
SHORT = {
    "train": ["trainer.max_steps=3", "trainer.evaluation.max_samples=50"],
    "rates": ["--batches=2", "--warmup=2"],
    "inspect": ["--batch-size=50", "--no-plots"],
    "compare": ["--no-plots"],
    "tune": ["tune.trials=2", "--dry-run"],
    "sweep": ["--dry-run"],
}
"""What a command gets beside its own words."""

ON_DIGITS = ["experiment=mlp_mnist", "model.widths=[8]", "data=digits", "data.validation=300"]
"""The experiment that stands for all, since the data sets of the paper may not be on this machine."""


def blocks(page: str) -> list[tuple[str, str]]:
    """The blocks of a page that run, as pairs of language and content."""
    text = (TUTORIALS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"```(sh|python)\n(.*?)```", text, re.S)


def test_there_are_commands_on_every_page() -> None:
    assert PAGES == ["compare", "inspect", "rates", "reproduce", "train"]
    for page in PAGES:
        assert any(language == "sh" for language, _ in blocks(page)), page


@pytest.mark.parametrize("page", PAGES)
def test_its_blocks_run_one_after_the_other(page, cli, no_images, tmp_path) -> None:
    names: dict[str, object] = {}
    if page == "reproduce":  # the page inspects a run of the reader's own
        run(cli, ["train", "name=NAME", *ON_DIGITS])
    for language, content in blocks(page):
        if language == "python":
            exec(compile(content.replace("\nprint(", "\nstr("), f"{page}.md", "exec"), names)
            continue
        for line in content.splitlines():
            word, *command = shlex.split(line, comments=True)
            assert word == "gnewton"
            run(cli, [with_folders(word) for word in command])


def run(cli, command: list[str]) -> None:
    """Run a command, and what cannot be run here in the form closest to it."""
    name, *words = command
    experiment = [word for word in words if word.startswith("experiment=") and "rosenbrock" not in word]
    if name == "data":  # there may be no network: the sets are known, which an unknown one is not
        known = cli(["data", "list"]).out
        assert words[0] == "fetch"
        assert all(data_set in known for data_set in words[1:])
        return
    if name == "sweep":  # its processes would import torch one by one: where data are at hand, in this one
        words = [re.sub(r"^seed=.*", "seed=1", word) for word in words]
        if not experiment:
            check(cli, ["train", "--multirun", *words, "model.widths=[8]", *SHORT["train"]])
            return
    elif experiment:
        if name == "train":
            check(cli, [name, *words, "--cfg", "job", "--resolve"])
        words = [*ON_DIGITS, *(word for word in words if word not in experiment)]
    extra = [] if {"--help", "--html"} & set(words) else SHORT.get(name, [])
    if "--full" in words:
        extra = ["--no-plots"]
    elif any(word.startswith("resume=") for word in words):
        extra = ["trainer.max_steps=4"]
    elif "experiment=rosenbrock" in words:
        extra = ["trainer.max_steps=3"]
    check(cli, [name, *words, *extra])


def check(cli, command: list[str]) -> None:
    answer = cli(command)
    assert answer.code == 0, f"{command}: {answer.err}"


def with_folders(word: str) -> str:
    """A word with the folder of the only run in place of RUN, and all runs in place of a search's."""
    if "SEARCH" in word:
        return "multirun" if Path("multirun").exists() else "outputs"
    start, place, _ = word.partition("/RUN")
    if not place:
        return word
    prefix, _, folder = start.rpartition("=")
    (only,) = Path(folder).iterdir()
    return f"{prefix}={only}" if prefix else str(only)
