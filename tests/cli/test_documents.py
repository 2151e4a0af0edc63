"""The commands on the pages of docs/: those that train compose, those that read a run are executed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gnewton.cli.choices import config_groups

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
DOCUMENT = (DOCS / "configuration.md").read_text(encoding="utf-8")

ELSEWHERE = {
    "sweeps": "sweep/test_documents.py",
    "compare": "cli/test_compare.py",
    "plugins": "cli/test_own_parts.py",
    "tutorials": "test_tutorials.py",
}
"""Pages, or folders of pages, whose commands another test runs."""


def commands(page: str) -> list[list[str]]:
    """The words of every gnewton command in the blocks of a page; a line that ends with \\ continues."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("gnewton ")]


COMMANDS = [*commands("configuration"), *commands("partitions")]


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_documented_command_composes(command, cli, tmp_path):
    own = re.search(r"```yaml\n(.*?)```", DOCUMENT, re.S)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "tiny.yaml").write_text(own[1])
    if "--multirun" in command:  # composed by the sweeper: the first of each list stands for all
        command = [word.partition(",")[0] for word in command if word != "--multirun"]
    if not {"--cfg", "--help", "-sc"} & set(command):
        command = [*command, "--cfg", "job", "--resolve"]
    answer = cli(command)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out


@pytest.mark.parametrize("page", ["inspect", "rates"])
def test_documented_commands_on_a_run_work(page, run, cli, tmp_path):
    """On the run of a small network, also in place of LeNet on CIFAR-10, and on few samples."""
    start = ["model=mlp", "data=digits", "model.widths=[8]"]
    folder = run([*start, "optimizer=adam", "trainer.max_steps=2"]).folder
    short = {"inspect": ["--batch-size=50", "--no-plots"], "rates": ["--batches=2", "--warmup=2"]}[page]
    for command in commands(page):
        if command[0] == "train":  # with the rates that the first command has written
            suggested = next(Path("suggestions").rglob("rates.yaml"))
            words = [re.sub(r"=suggestions/.*", f"={suggested}", word) for word in command]
            answer = cli([*words, "--cfg", "job", "--resolve"])
        else:
            words = [word.replace("outputs/NAME/RUN", str(folder)) for word in command]
            at_start = "data=cifar10" in words
            words = [
                *(word for word in words if word not in ("model=lenet", "data=cifar10")),
                *start * at_start,
            ]
            answer = cli([*words, *(["--no-plots"] if "--full" in words else short)])
        assert answer.code == 0, f"{command}: {answer.err}"


def test_no_page_has_commands_that_no_test_runs():
    here = {"configuration", "partitions", "inspect", "rates"}
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    for page in (page for page in pages if commands(page)):
        owner = ELSEWHERE.get(page, ELSEWHERE.get(page.partition("/")[0]))
        assert page in here or owner, page
        if owner:
            assert page.partition("/")[0] in (TESTS / owner).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_a_numbered_list_with_paragraphs_has_a_blank_line_before_each_number(path):
    """Without it the site joins the number to the paragraph above."""
    before, loose = "", False
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\d+\. ", line):
            assert not (loose and before), line
        elif line.startswith("    ") and not before:
            loose = True
        elif line and not line.startswith(" "):
            loose = False
        before = line


def test_every_group_is_named():
    for group in config_groups():
        assert f"`{group}`" in DOCUMENT
