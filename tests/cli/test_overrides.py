"""Overrides as they are typed, pasted: texts without quotes, ``~``, commas, options misplaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gnewton.cli.composer import for_resumed_run, with_choices_of
from gnewton.errors import InputError
from gnewton.experiment.overrides import Override, parse_overrides
from tests.conftest import SMALL_BASELINE

SHORT = ("optimizer=sgd", *SMALL_BASELINE, "trainer.epochs=1", "trainer.device=cpu")


def prepared(arguments):
    return [override.text for override in parse_overrides(arguments)]


TEXTS = [
    "größe", "a=b", "a==b", "O'Brien", 'say "a"', "a&b;c", "run (1)", "日本", "50%", "a#b!", "x~y", "a\tb",
    "C:\\data\\new.npz",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_needs_no_quotes(text):
    for key in ("name", "data.path", "resume"):
        (override,) = prepared([f"{key}={text}"])
        assert OverridesParser.create().parse_override(override).value() == text


@pytest.mark.parametrize(
    "argument",
    ["name='a=b'", 'resume="x y"', "name=a,b", "resume=null", "--cfg", "trainer.epochs==3", "name="],
)
def test_valid_overrides_and_other_options_stay_as_typed(argument):
    assert prepared([argument]) == [argument]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed=0,1", ("", "seed", "", "0,1")),
        ("++name=a=b@c", ("++", "name", "", "a=b@c")),
        ("~model", ("~", "model", "", None)),
        ("+logger@logger.x=wandb", ("+", "logger", "logger.x", "wandb")),
        ("name=", ("", "name", "", "")),
    ],
)
def test_the_parts_of_an_override(text, parts):
    override = Override.parse(text)
    assert (override.prefix, override.key, override.package, override.value) == parts
    assert override.text == text


def test_what_an_override_is_within():
    override = Override.parse("optimizer/schedule@optimizer.schedule=cosine")
    assert override.is_within("optimizer")
    assert override.is_within("model", "optimizer.schedule")
    assert not override.is_within("optimizer.sched")
    assert Override.parse("name='a,b',c").values() == ["a,b", "c"]


@pytest.mark.parametrize("text", ["=3", "+=", "~", "", "@model=mlp"])
def test_an_override_without_a_name_is_refused(text):
    with pytest.raises(InputError, match=r"not of the form option=value \(there is no option"):
        parse_overrides([text])


def test_several_texts_in_a_sweep():
    (override,) = prepared(["resume=outputs/größe/A,outputs/a=b/B"])
    parsed = OverridesParser.create().parse_override(override)
    assert [str(choice.text) for choice in parsed.value().list] == ["outputs/größe/A", "outputs/a=b/B"]


@pytest.mark.parametrize("key", ["output_root", "data.path", "data.root", "resume", "optimizer.rates"])
def test_the_home_folder(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert prepared([f"{key}=~/x"]) == [f"{key}=/home/me/x"]
    assert prepared([f"{key}='~/x'"]) == [f"{key}='/home/me/x'"]
    assert prepared([f"{key}=~/x,~/y"]) == [f"{key}=/home/me/x,/home/me/y"]
    assert prepared([f"{key}=a~/x"]) == [f'{key}="a~/x"']
    assert prepared(["name=~/x"]) == ['name="~/x"']


def test_names_and_folders_of_any_kind_from_end_to_end(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli(["train", *SHORT, "name=größe=2", "output_root=~/x"]).code == 0
    assert not (tmp_path / "~").exists()
    (folder,) = (tmp_path / "home" / "x").glob("größe=2/*")
    assert cli(["train", f"resume={folder}", "trainer.epochs=2"]).code == 0
    assert (folder / "metrics.csv").read_text().count("\n") == 4
    answer = cli(["rates", str(folder), "--batches=2", "--warmup=0", "--batch-size=20"])
    assert answer.code == 0
    pasted = answer.out.splitlines()[-1].removeprefix("use them with ")
    import shlex

    assert cli(["train", *SHORT[1:], *shlex.split(pasted)]).code == 0


@pytest.mark.parametrize("command", ["train", "sweep", "tune"])
@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("seed=0,1,", "after the last comma"),
        ("seed=,0", "before the first comma"),
        ("seed=0,,1", "between two commas"),
        ("optimizer=sgd,", "after the last comma"),
        ("model.widths=[8,]", "after the last comma"),
        ("optimizer.lr=0.1, ", "after the last comma"),
    ],
)
def test_a_comma_too_many(cli, command, override, where):
    answer = cli([command, override])
    assert answer.code == 2
    assert answer.err == f"gnewton: {override}: there is no value {where}; give one, or leave the comma out\n"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=0.1", "'optimizer.lr'"),
        ("epochs=3", "'trainer.epochs'"),
        ("epoch=3", "'trainer.epochs'"),
        ("learning_rate=0.1", "'optimizer.lr'"),
        ("momentum=0.9", "'optimizer.momentum'"),
        ("widths=[8]", "'model.widths'"),
        ("batch_size=10", "'trainer.batch_size'"),
        ("device=cpu", "'trainer.device'"),
        ("path=x.npz", "'data.path'"),
        ("trainer.lr=0.1", "'optimizer.lr'"),
        ("model.epochs=2", "'trainer.epochs'"),
        ("optimizer.batch_size=2", "'trainer.batch_size'"),
        ("batch_size=2", "'trainer.batch_size' or 'trainer.evaluation.batch_size'? ("),  # none of curvature
        ("schedule=cosine", "'optimizer/schedule'? ("),  # a group has a slash
        ("clip=1", "'trainer.clip_norm'? ("),  # a word of the name
        ("path=x.npz", "'data.path'? It belongs to data=npz ("),  # of another choice
        ("step_size=1", "'optimizer.step_size'? It belongs to optimizer=grouped_newton"),
    ],
)
def test_an_option_in_the_wrong_place(cli, override, meant):
    for command in ("train", "sweep"):
        answer = cli([command, "optimizer=sgd", override])
        assert answer.code == 2
        assert answer.err.startswith(f"gnewton: {override}: no such option; did you mean {meant}")
        assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    "override", ["hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.output_subdir=x", "hydra.job.chdir=true"]
)
def test_outputs_are_not_moved_by_hydra(cli, tmp_path, override):
    answer = cli(["train", override])
    assert answer.code == 2
    assert answer.err == f"gnewton: {override}: has no effect, a run makes its folder under output_root\n"
    assert list(tmp_path.iterdir()) == []


def test_a_special_character_in_an_option_that_takes_no_text(cli):
    answer = cli(["train", "trainer.epochs=größe"])
    assert answer.code == 2
    assert answer.err == (
        "gnewton: trainer.epochs=größe: not of the form option=value; where 'ö' belongs to a text, "
        "write 'trainer.epochs=\"größe\"'\n"
    )


def test_options_of_a_run_bring_its_choices(run):
    folder = run([*SHORT]).folder

    def completed(*texts):
        return [override.text for override in with_choices_of(folder, parse_overrides(texts))]

    def resumed(*texts):
        return [override.text for override in for_resumed_run(parse_overrides(texts))]

    assert completed("optimizer.lr=0.1") == ["optimizer=sgd", "optimizer.lr=0.1"]
    assert completed("optimizer=adam", "optimizer.lr=1") == ["optimizer=adam", "optimizer.lr=1"]
    assert completed("trainer.epochs=3") == ["trainer.epochs=3"]
    arguments = [f"resume={folder}", "optimizer.lr=0.1"]
    assert resumed(*arguments) == ["optimizer=sgd", *arguments]
    assert resumed("resume=nowhere", "optimizer.lr=1") == ["resume=nowhere", "optimizer.lr=1"]


@pytest.mark.parametrize("flag", ["--output", "-o"])
def test_paths_of_flags_know_the_home_folder(cli, run, monkeypatch, tmp_path, flag):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run([*SHORT], tmp_path / "outputs")
    value = ["--output=~/c"] if flag == "--output" else ["-o", "~/c"]
    assert cli(["compare", "outputs", "--no-plots", *value]).code == 0
    assert (tmp_path / "home" / "c" / "runs.csv").is_file()
    assert not Path("~").exists()


def test_the_list_of_data_sets(cli, tmp_path):
    (tmp_path / "no-data" / "mnist").mkdir(parents=True)
    (tmp_path / "no-data" / "mnist" / "mnist.npz").write_bytes(bytes(3_000_000))
    answer = cli(["data", "list"])
    assert answer.code == 0
    lines = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line}
    assert lines["mnist"][:6] == ["on", "disk", "3", "MB", "CC", "BY-SA"]
    assert lines["cifar10"][:7] == ["not", "on", "disk", "184", "MB", "none", "stated"]
    assert lines["in"][0].startswith(str(tmp_path / "no-data"))
    assert "not on disk" in cli(["data", "list", f"--root={tmp_path}"]).out.splitlines()[5]
