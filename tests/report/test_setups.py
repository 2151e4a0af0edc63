"""Set-ups: which runs belong together, what tells them apart, and which of several runs of a seed counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.report.runs import find_runs
from gnewton.report.setups import Setup, distinguish, flatten, group_runs, identity
from tests.report.builders import ENVIRONMENT, GPU, falling, grouped_newton, write_run


def _grouped(tmp_path) -> tuple[list[Setup], list[str]]:
    return group_runs(find_runs([tmp_path])[0])


def test_runs_that_differ_in_the_seed_alone_are_one(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path, f"run{seed}", {"seed": seed})
    (setup,), notes = _grouped(tmp_path)
    assert ([run.seed for run in setup.runs], notes) == ([0, 1, 2], [])
    assert (setup.label, setup.problem, setup.solver) == ("sgd", "mlp digits", "sgd")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("output_root", "/elsewhere"),
        ("trainer.progress", "bar"),
        ("data.root", "/data"),
        ("resume", "x"),
        ("trainer.checkpoint_every", "5 seconds"),
    ],
)
def test_places_and_reports_make_no_difference(option, value, tmp_path):
    write_run(tmp_path, "a", {"seed": 0})
    write_run(tmp_path, "b", {"seed": 1, option: value})
    assert len(_grouped(tmp_path)[0]) == 1


def test_loggers_make_no_difference(tmp_path):
    write_run(tmp_path, "a", {"seed": 0, "logger": {}})
    write_run(tmp_path, "b", {"seed": 1, "logger": {"wandb": {"name": "wandb", "mode": "offline"}}})
    assert len(_grouped(tmp_path)[0]) == 1


def test_the_rates_of_parameters_are_one_option(tmp_path):
    write_run(tmp_path, "a", {"optimizer.rates": None})
    for name, rate in (("b", 0.1), ("c", 0.2)):
        write_run(tmp_path, name, {"optimizer.rates": {"hidden1.weight": rate, "hidden1.bias": 1.0}})
    write_run(tmp_path, "d", {"seed": 1, "optimizer.rates": {"hidden1.bias": 1.0, "hidden1.weight": 0.2}})
    plain, first, second = sorted(_grouped(tmp_path)[0], key=lambda setup: setup.runs[0].folder.name)
    assert plain.label == "sgd"
    assert first.label.startswith("sgd rates=2 of ")
    assert second.label.startswith("sgd rates=2 of ")
    assert first.label != second.label
    assert len(second.runs) == 2


def test_an_option_that_is_off_is_like_one_that_is_not_there(tmp_path):
    """As in the runs of a version without that option."""
    write_run(tmp_path, "a", {"seed": 0})
    write_run(tmp_path, "b", {"seed": 1, "trainer.new": None, "trainer.bounds": []})
    assert len(_grouped(tmp_path)[0]) == 1
    write_run(tmp_path, "c", {"seed": 1, "trainer.new": 3})
    assert [setup.label for setup in _grouped(tmp_path)[0]] == ["sgd", "sgd new=3"]


def test_the_order_of_the_options_makes_no_difference(tmp_path):
    write_run(tmp_path, "a", {"seed": 0, "optimizer": {"name": "sgd", "lr": 1.0}})
    write_run(tmp_path, "b", {"seed": 1, "optimizer": {"lr": 1.0, "name": "sgd"}})
    assert len(_grouped(tmp_path)[0]) == 1


def test_labels_say_what_differs_and_no_more(tmp_path):
    for place, lr in enumerate((0.1, 0.25, 1e-5)):
        write_run(tmp_path, f"sgd{place}", {"optimizer.lr": lr})
    write_run(tmp_path, "gn", grouped_newton())
    labels = [setup.label for setup in _grouped(tmp_path)[0]]
    assert labels == ["grouped_newton", "sgd lr=1e-05", "sgd lr=0.1", "sgd lr=0.25"]


def test_values_that_print_alike_are_told_apart(tmp_path):
    write_run(tmp_path, "a", {"optimizer.lr": 0.1})
    write_run(tmp_path, "b", {"optimizer.lr": 0.1000000001})
    assert [setup.label for setup in _grouped(tmp_path)[0]] == ["sgd lr=0.1", "sgd lr=0.1000000001"]


def test_a_choice_explains_the_options_that_come_with_it(tmp_path):
    cosine = {"name": "cosine", "final": 0.0, "warmup": 3}
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", {"optimizer.schedule": cosine})
    labels = [setup.label for setup in _grouped(tmp_path)[0]]
    assert labels == ["sgd schedule=constant", "sgd schedule=cosine"]


def test_problems_are_named_where_there_are_several(tmp_path):
    for data in ("digits", "mnist"):
        write_run(tmp_path, f"{data}-sgd", {"data.name": data})
        write_run(tmp_path, f"{data}-gn", {"data.name": data, **grouped_newton()})
    setups, _ = _grouped(tmp_path)
    assert [setup.label for setup in setups] == [
        "mlp digits: grouped_newton",
        "mlp digits: sgd",
        "mlp mnist: grouped_newton",
        "mlp mnist: sgd",
    ]
    assert [setup.solver for setup in setups] == ["grouped_newton", "sgd"] * 2


def test_a_solver_tuned_for_each_problem_keeps_its_name(tmp_path):
    for data, lr in (("digits", 0.1), ("mnist", 0.3)):
        write_run(tmp_path, f"{data}-sgd", {"data.name": data, "optimizer.lr": lr})
        for momentum in (0.0, 0.9):
            options = {"name": "adam", "lr": lr, "momentum": momentum}
            write_run(tmp_path, f"{data}-adam{momentum}", {"data.name": data, "optimizer": options})
    solvers = {setup.solver for setup in _grouped(tmp_path)[0]}
    assert solvers == {"sgd", "adam momentum=0", "adam momentum=0.9"}


def test_names_come_last(tmp_path):
    write_run(tmp_path, "a", {"name": "first", "optimizer.lr": 0.1})
    write_run(tmp_path, "b", {"name": "second", "optimizer.lr": 0.2})
    assert [setup.label for setup in _grouped(tmp_path)[0]] == ["sgd lr=0.1", "sgd lr=0.2"]
    write_run(tmp_path, "c", {"name": "third", "optimizer.lr": 0.2})
    assert [s.label for s in _grouped(tmp_path)[0]] == [
        "sgd lr=0.1",
        "sgd lr=0.2 name=second",
        "sgd lr=0.2 name=third",
    ]


def test_hardware_makes_set_ups_where_it_differs(tmp_path):
    write_run(tmp_path, "a", environment=ENVIRONMENT)
    write_run(tmp_path, "b", environment=GPU)
    labels = [setup.label for setup in _grouped(tmp_path)[0]]
    assert labels == ["sgd hardware=cpu Test Processor", "sgd hardware=cuda Test GPU"]


@pytest.mark.parametrize(
    ("statuses", "counts"),
    [
        (["done", "done"], 1),
        (["done", None], 0),
        (["diverged", None], 0),
        ([None, "diverged"], 1),
        (["done", "diverged", None], 1),
        ([None, None, "interrupted"], 2),
    ],
)
def test_of_several_runs_of_a_seed_the_latest_that_ended_counts(statuses, counts, tmp_path):
    for place, status in enumerate(statuses):
        write_run(tmp_path, f"2026112{place}_abc", result=status, rows=falling([1.0]))
    (setup,), (note,) = _grouped(tmp_path)
    assert [run.folder.name for run in setup.runs] == [f"2026112{counts}_abc"]
    assert note.startswith(f"sgd, seed 0: {len(statuses)} runs (")
    assert note.endswith(f"2026112{counts}_abc counts")


def test_flatten():
    nested = {"a": {"b": 1, "c": {"d": [1, {"e": 2}]}}, "f": {}, "g": None}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [1, {"e": 2}], "f": {}, "g": None}


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(0, 1), st.sampled_from(["x", "y"]))
OPTIONS = st.dictionaries(st.sampled_from(["a", "b.name", "b.c", "d.c", "name"]), VALUES)


@given(st.lists(OPTIONS, min_size=1, max_size=8))
def test_labels_differ_exactly_where_the_options_do(entries):
    labels = distinguish(entries, always=("b.name",))
    for first, one in zip(entries, labels, strict=True):
        for second, other in zip(entries, labels, strict=True):
            assert (identity(first) == identity(second)) == (one == other)


@given(st.lists(OPTIONS, min_size=1, max_size=8), st.randoms())
def test_labels_do_not_depend_on_how_often_a_set_up_occurs(entries, random):
    labels = dict(zip(map(identity, entries), distinguish(entries), strict=True))
    assert len(set(labels.values())) == len(labels)


def test_labels_that_read_alike_are_numbered(tmp_path):
    write_run(tmp_path, "a", {"optimizer.extra": "1 nesterov=2"})
    write_run(tmp_path, "b", {"optimizer.extra": "1", "optimizer.nesterov": 2})
    write_run(tmp_path, "c", {"optimizer.extra": "1", "optimizer.nesterov": 3})
    write_run(tmp_path, "d", {"optimizer.extra": "2", "optimizer.nesterov": 3})
    labels = [setup.label for setup in _grouped(tmp_path)[0]]
    assert len(set(labels)) == 4


def test_odd_values_stay_on_one_line(tmp_path):
    write_run(tmp_path, "a", {"optimizer.extra": "two\nlines"})
    write_run(tmp_path, "b", {"optimizer.extra": "<b>ü</b>"})
    assert [s.label for s in _grouped(tmp_path)[0]] == ["sgd extra=<b>ü</b>", "sgd extra=two lines"]


def test_numbers_are_short_where_that_tells_them_apart(tmp_path):
    for place, lr in enumerate((0.1, 0.1 + 0.2, 0.7000000000000001)):
        write_run(tmp_path, str(place), {"optimizer.lr": lr})
    assert [setup.label for setup in _grouped(tmp_path)[0]] == ["sgd lr=0.1", "sgd lr=0.3", "sgd lr=0.7"]
    write_run(tmp_path, "3", {"optimizer.lr": 0.3})
    labels = [setup.label for setup in _grouped(tmp_path)[0]]
    assert labels == ["sgd lr=0.1", "sgd lr=0.3", "sgd lr=0.30000000000000004", "sgd lr=0.7"]


def test_set_ups_are_in_the_order_of_their_numbers(tmp_path):
    for place, lr in enumerate((10.0, 2.0, 1e-05, 0.3)):
        write_run(tmp_path, str(place), {"optimizer.lr": lr})
    labels = [setup.label for setup in _grouped(tmp_path)[0]]
    assert labels == ["sgd lr=1e-05", "sgd lr=0.3", "sgd lr=2", "sgd lr=10"]
