"""Times are compared on equal terms, or only on request."""

from __future__ import annotations

import pytest

from gnewton.errors import InputError
from gnewton.report.comparison import compare
from tests.report.builders import ENVIRONMENT, GPU, falling, grouped_newton, write_run


def _pair(tmp_path, options, environment, first=ENVIRONMENT):
    write_run(tmp_path, "one", rows=falling([1.0]), environment=first)
    write_run(tmp_path, "two", {"seed": 1, **options}, rows=falling([1.0]), environment=environment)
    return [tmp_path]


@pytest.mark.parametrize(
    ("options", "environment", "line"),
    [
        ({}, GPU, "device: cpu Test Processor (1 run), cuda Test GPU (1 run)"),
        ({}, ENVIRONMENT | {"device_name": "Other"}, "device: cpu Test Processor (1 run), cpu Other (1 run)"),
        ({}, ENVIRONMENT | {"threads": 2}, "threads: 1 (1 run), 2 (1 run)"),
        ({}, ENVIRONMENT | {"cores": 64}, "cores: 2 (1 run), 64 (1 run)"),
        ({}, ENVIRONMENT | {"processes": 4}, "processes: 1 (1 run), 4 (1 run)"),
        ({"trainer.dtype": "float64"}, ENVIRONMENT, "dtype: float32 (1 run), float64 (1 run)"),
        (
            {},
            ENVIRONMENT | {"resumed": [{"step": 5, **GPU}]},
            "device: cpu Test Processor (1 run), cpu Test Processor, then cuda Test GPU (1 run)",
        ),
    ],
)
def test_differences_are_refused_and_named(options, environment, line, tmp_path):
    folders = _pair(tmp_path, options, environment)
    with pytest.raises(InputError) as refused:
        compare(folders)
    assert f"  {line}" in str(refused.value).splitlines()
    assert "--mixed-hardware" in str(refused.value)
    allowed = compare(folders, mixed_hardware=True)
    assert len(allowed.setups) == 2
    assert any("their times mean little beside each other" in note for note in allowed.notes)


@pytest.mark.parametrize(("option", "value"), [("trainer.precision", "bfloat16"), ("trainer.compile", True)])
def test_rounded_and_compiled_runs_are_told_from_others(tmp_path, option, value):
    with pytest.raises(
        InputError, match=f"float32 \\({'compiled' if value is True else 'bfloat16 autocast'}\\)"
    ):
        compare(_pair(tmp_path, {option: value}, ENVIRONMENT))


def test_tf32_is_a_format_of_its_own_on_a_gpu_alone(tmp_path):
    with pytest.raises(InputError, match=r"dtype: float32 \(1 run\), float32 \(TF32\) \(1 run\)"):
        compare(_pair(tmp_path / "gpu", {"trainer.tf32": True}, GPU, first=GPU))
    compare(_pair(tmp_path / "cpu", {"trainer.tf32": True}, ENVIRONMENT))


@pytest.mark.parametrize(
    "environment",
    [
        ENVIRONMENT | {"packages": {"torch": "2.11"}, "time": "2027"},
        {key: value for key, value in ENVIRONMENT.items() if key != "processes"},  # of an older version
        ENVIRONMENT | {"resumed": [{"step": 5, **ENVIRONMENT}]},
    ],
)
def test_conditions_that_count_as_equal(environment, tmp_path):
    comparison = compare(_pair(tmp_path, {}, environment))
    assert len(comparison.setups) == 1
    assert comparison.hardware.startswith("cpu Test Processor, 1 thread on 2 cores, float32, torch 2.14.1")


def test_which_of_several_gpus_it_was_does_not_matter(tmp_path):
    assert compare(_pair(tmp_path, {}, GPU | {"device": "cuda:1", "cores": 64}, first=GPU)).hardware == (
        "cuda Test GPU, float32, torch 2.14.1"
    )


def test_a_run_that_measured_nothing_has_no_times_to_compare(tmp_path):
    write_run(tmp_path, "one", rows=falling([1.0]))
    write_run(tmp_path, "two", {"seed": 1, "trainer.dtype": "float64"}, environment={}, result=None)
    assert len(compare([tmp_path]).setups) == 2


def test_a_run_on_unknown_hardware_is_not_taken_for_one_on_the_same(tmp_path):
    with pytest.raises(InputError, match=r"cpu Test Processor \(1 run\), unknown unknown \(1 run\)"):
        compare(_pair(tmp_path, {}, {}))


def test_allowed_mixtures_keep_the_hardware_apart_in_every_row(tmp_path):
    for place, environment in enumerate((ENVIRONMENT, GPU)):
        for seed in (0, 1):
            for name, options in (("sgd", {}), ("gn", grouped_newton())):
                write_run(
                    tmp_path,
                    f"{name}{place}{seed}",
                    {"seed": seed, **options},
                    rows=falling([1.0]),
                    environment=environment,
                )
    labels = [setup.label for setup in compare([tmp_path], mixed_hardware=True).setups]
    assert labels == [
        f"{name} hardware={hardware}"
        for name in ("grouped_newton", "sgd")
        for hardware in ("cpu Test Processor", "cuda Test GPU")
    ]


def test_other_problems_may_have_been_solved_elsewhere(tmp_path):
    write_run(tmp_path, "one", rows=falling([1.0]))
    write_run(tmp_path, "two", {"model.name": "lenet", "trainer.dtype": "float64"}, rows=falling([1.0]))
    comparison = compare([tmp_path])
    assert len(comparison.setups) == 2
    assert comparison.hardware.count(";") == 1
