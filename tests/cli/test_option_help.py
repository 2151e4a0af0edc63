"""The options in words: ``--help`` beside overrides, and docs/options.md."""

from __future__ import annotations

import pytest

from gnewton.cli.composer import Composer
from gnewton.cli.option_help import describe_options
from scripts.options_page import PAGE, page


def test_the_page_of_all_options_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew with make docs-options"


def test_an_option_is_described_by_its_field():
    (node,) = Composer().choices([("trainer", "quick")]).values()
    options = {option.name: option for option in describe_options(node, "trainer.")}
    epochs, train = options["trainer.epochs"], options["trainer.evaluation.train"]
    assert (epochs.value, epochs.type, epochs.allowed) == ("1", "whole number", ">= 1")
    assert epochs.flags == ("resumable", "course")
    assert (train.value, train.type, train.flags) == ("false", "true or false", ("course",))
    assert "trainer.name" not in options


@pytest.mark.parametrize(
    ("arguments", "there", "missing"),
    [
        (
            ["train", "optimizer=adam"],
            ["optimizer.lr=0.001", "[number > 0]", "schedule="],
            ["model."],
        ),
        (
            ["train", "trainer.epochs=3"],
            ["trainer.epochs=3", "passes over the training split"],
            ["optimizer."],
        ),
        (["train", "optimizer/controller=progress"], ["controller.window=6"], ["optimizer.cap"]),
        (["train", "experiment=mlp_mnist"], ["model.widths=", "trainer.epochs=100", "data.root="], []),
        (["train", "optimizer=grouped_newton_paper"], ["curvature.batch_size=100"], ["first"]),
        (["sweep", "launcher=slurm"], ["launcher.minutes=240", "[slurm, local]"], ["optimizer."]),
        (["tune", "tune.trials=4", "model=vit"], ["tune.trials=4", "model.heads=4"], ["launcher."]),
    ],
    ids=" ".join,
)
def test_help_beside_overrides_lists_their_options(arguments, there, missing, cli):
    answer = cli([*arguments, "--help"])
    assert (answer.code, answer.err) == (0, "")
    words = " ".join(answer.out.split())
    assert [text for text in there if text not in words] == []
    assert [text for text in missing if text in words] == []


def test_help_beside_a_wrong_choice_says_so(cli):
    answer = cli(["train", "optimizer=sdg", "--help"])
    assert answer.code == 2
    assert "did you mean 'sgd'?" in answer.err


def test_plain_help_lists_the_options_of_no_choice(cli):
    out = cli(["train", "--help"]).out
    for text in ("  seed=0 ", "  output_root=outputs ", "  resume=null "):
        assert text in out
