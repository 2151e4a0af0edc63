"""From arrays to data sets: splits, scaling, tasks, and the options that decide them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf

from gnewton.data.arrays import Arrays
from gnewton.data.assemble import divide, moments
from gnewton.data.dataset_options import DATA
from gnewton.errors import InputError
from gnewton.options import validate
from gnewton.tasks import Classification, Minimisation, Reconstruction, Regression
from tests.data.cases import CONFIGS, CPU, build, colour_arrays, recipe, save_npz


@pytest.fixture
def hydra_data():
    """Compose ``data=NAME`` with the schemas of this registry."""
    store = ConfigStore.instance()
    for name, node in DATA.items():
        store.store(group="schema/data", name=name, node=node)
    with initialize_config_dir(str(CONFIGS.parent), version_base="1.3"):
        yield lambda name, *overrides: compose(overrides=[f"+data={name}", *overrides]).data


def test_every_recipe_has_a_yaml_and_the_other_way_round():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(DATA.names())


@pytest.mark.parametrize("name", DATA.names())
def test_a_choice_composes_is_complete_and_valid(hydra_data, name):
    config = hydra_data(name)
    if name == "npz":
        config.path = "some.npz"
    built = OmegaConf.to_object(config)
    assert type(built) is DATA[name]
    assert built.name == name
    validate(built, "data")


@pytest.mark.parametrize("name", DATA.names())
def test_a_yaml_describes_itself(name):
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert re.fullmatch(r"# \S.{10,}", lines[0])


@pytest.mark.parametrize(
    "override",
    [
        "data.validation=many",
        "data.augment.flip=7.5",
        "data.sbset=3",
        "data.augment.crop=1",
        "data.subset=[1]",
    ],
)
def test_wrong_types_and_unknown_options_do_not_compose(hydra_data, override):
    with pytest.raises(HydraException):
        hydra_data("mnist", override)


def test_the_root_follows_the_environment(hydra_data, monkeypatch):
    monkeypatch.delenv("GNEWTON_DATA", raising=False)
    assert hydra_data("mnist").root == "data"
    monkeypatch.setenv("GNEWTON_DATA", "/elsewhere")
    assert hydra_data("cifar10").root == "/elsewhere"
    assert hydra_data("imagenet").root == "/elsewhere/imagenet"


def test_recipes_are_listed_without_heavy_imports():
    code = (
        "import sys; from gnewton.data.dataset_options import DATA; names = DATA.names();"
        "heavy = {'torch', 'torchvision', 'numpy', 'sklearn', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy; assert 'digits' in names"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mnist", {"validation": 0}, "data.validation=0: must be "),
        ("mnist", {"validation": 60_000}, "data.validation=60000: must be < 60000"),
        ("mnist", {"subset": 0}, "data.subset=0: must be "),
        ("mnist", {"subset": 54_001}, "data.subset=54001: must be <= 54000"),
        ("cifar10", {"subset": 45_001}, "data.subset=45001: must be <= 45000"),
        ("cifar10", {"split_seed": -1}, "data.split_seed=-1: must be"),
        ("cifar10", {"split_seed": 2**32}, "data.split_seed=4294967296: must be"),
        ("cifar10", {"augment__crop_padding": -1}, "data.augment.crop_padding=-1: must be"),
        ("cifar10", {"augment__crop_padding": 32}, "data.augment.crop_padding=32: must be < 32"),
        ("cifar100", {"target": "image"}, "data.target=image: must be one of label, input"),
        ("cifar100", {"target": "input"}, "data.normalise=true: must be false with target=input"),
        ("digits", {"test": 1500}, "data.test=1500: must be < 1797 together with validation=300"),
        ("digits", {"subset": 1201}, "data.subset=1201: must be <= 1200"),
        ("none", {"steps_per_epoch": 0}, "data.steps_per_epoch=0: must be"),
        ("teacher", {"hidden": [3, 0]}, r"data.hidden=[3,0]: must be"),
        (
            "teacher",
            {"activation": "elu"},
            "data.activation=elu: must be one of identity, relu, sigmoid, tanh",
        ),
        ("teacher", {"noise": -0.1}, "data.noise=-0.1: must be"),
        ("imagenet", {"resize": 200}, "data.resize=200: must be >= size=224"),
        ("imagenet", {"workers": -1}, "data.workers=-1: must be"),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        validate(recipe(name, **changes), "data")


def test_splits_are_disjoint_cover_everything_and_stay_the_same():
    train, validation = divide(1000, 300, None, 7)
    assert sorted([*train, *validation]) == list(range(1000))
    assert len(validation) == 300
    assert divide(10, 4, None, 0)[1].tolist() == [2, 8, 4, 9]  # frozen for ever: a change breaks comparisons
    assert np.array_equal(divide(1000, 300, None, 7)[0], train)
    assert not np.array_equal(divide(1000, 300, None, 8)[0], train)
    subset, same_validation = divide(1000, 300, 50, 7)
    assert np.array_equal(subset, train[:50])
    assert np.array_equal(validation, same_validation)


@pytest.mark.parametrize(("held_out", "subset", "option"), [(10, None, "validation"), (4, 7, "subset")])
def test_sets_too_small_for_the_options_are_refused(held_out, subset, option):
    with pytest.raises(InputError, match=rf"data\.{option}="):
        divide(10, held_out, subset, 0)


def test_digits_are_divided_into_all_of_the_set():
    digits = build("digits")
    parts = [part.inputs.flatten(1) for part in (digits.train, digits.validation, digits.test)]
    assert [len(part) for part in parts] == [1200, 300, 297]
    from sklearn.datasets import load_digits

    everything = torch.from_numpy(load_digits().data).to(torch.uint8)
    assert sorted(torch.cat(parts).tolist()) == sorted(everything.tolist())
    assert digits.task == Classification(input_shape=(1, 8, 8), outputs=10)


def test_the_run_seed_decides_orders_and_not_splits():
    first, second = build("digits", seed=0), build("digits", seed=1)
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert not torch.equal(next(first.train.epoch(0, 50))[1], next(second.train.epoch(0, 50))[1])
    other = build("digits", split_seed=1)
    assert not torch.equal(first.train.inputs, other.train.inputs)


def test_training_inputs_are_normalised_by_training_statistics():
    digits = build("digits", dtype=torch.float64)
    inputs, _ = next(digits.train.epoch(0, None))
    assert inputs.dtype == torch.float64
    assert abs(inputs.mean().item()) < 1e-12
    assert abs(inputs.std(correction=0).item() - 1) < 1e-12
    subset = build("digits", dtype=torch.float64, subset=10)
    stored = torch.equal(subset.train.inputs, digits.train.inputs[:10])
    assert stored
    assert torch.equal(next(subset.train.in_order(10))[0], next(digits.train.in_order(10))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_scaling_is_the_textbook_formula(tmp_path, dtype):
    path = save_npz(tmp_path / "a.npz")
    data = build("npz", path=str(path), validation=10, dtype=dtype)
    arrays = colour_arrays()
    train = arrays.x_train[divide(40, 10, None, 0)[0]] / 255.0
    expected = (arrays.x_test / 255.0 - train.mean(axis=(0, 1, 2))) / train.std(axis=(0, 1, 2))
    inputs, labels = next(data.test.in_order(10))
    assert inputs.dtype == dtype
    assert inputs.shape == (10, 3, 6, 5)
    assert labels.dtype == torch.int64
    reference = torch.from_numpy(expected.transpose(0, 3, 1, 2))
    assert torch.allclose(inputs.double(), reference, rtol=1.01 * torch.finfo(dtype).eps, atol=2e-6)
    if dtype == torch.float64:
        assert torch.allclose(inputs, reference, rtol=1e-13, atol=1e-13)


def test_a_constant_feature_becomes_zero():
    inputs = np.array([[1.0, 3.0], [5.0, 3.0]])
    assert moments(inputs, 255.0) == ((3.0, 3.0), (2.0, 1.0))


def test_without_normalisation_pixels_lie_in_the_unit_interval():
    inputs, _ = next(build("digits", normalise=False).train.in_order(2000))
    assert inputs.min() == 0
    assert inputs.max() == 1


def test_the_target_may_be_the_augmented_input(tmp_path):
    path = save_npz(tmp_path / "a.npz")
    data = build("npz", path=str(path), validation=10, target="input", normalise=False, augment__flip=True)
    assert data.task == Reconstruction(input_shape=(3, 6, 5), outputs=90)
    for inputs, targets in [
        *data.train.epoch(0, 7),
        next(data.train.stream(7, seed=0)),
        *data.test.in_order(4),
    ]:
        assert torch.equal(inputs.flatten(1), targets)
        assert targets.min() >= 0
        assert targets.max() <= 1
    assert data.train.inputs.max() == 255


def test_only_training_is_augmented(tmp_path):
    path = save_npz(tmp_path / "a.npz")
    data = build("npz", path=str(path), validation=10, augment__crop_padding=2)
    plain = build("npz", path=str(path), validation=10)
    assert not torch.equal(
        next(data.train.epoch(0, None))[0].sort(0)[0], next(plain.train.epoch(0, None))[0].sort(0)[0]
    )
    for part in ("validation", "test"):
        batches = (getattr(entry, part).epoch(0, None) for entry in (data, plain))
        left, right = (next(batch)[0] for batch in batches)
        assert torch.equal(left, right)
    assert not torch.equal(next(data.train.stream(30, seed=0))[0], next(plain.train.stream(30, seed=0))[0])


def test_float_features_make_a_regression(tmp_path):
    random = np.random.RandomState(0)
    arrays = Arrays(
        random.randn(30, 5).astype(">f8"), random.randn(30).astype("f2"), random.randn(7, 5).astype(">f8"),
        random.randn(7).astype("f2"),
    )  # fmt: skip
    data = build("npz", path=str(save_npz(tmp_path / "a.npz", arrays)), validation=5)
    assert data.task == Regression(input_shape=(5,), outputs=1)
    inputs, targets = next(data.train.epoch(0, 8))
    assert (inputs.shape, targets.shape) == ((8, 5), (8, 1))
    assert inputs.dtype == targets.dtype == torch.float32
    assert torch.allclose(next(data.train.epoch(0, None))[0].mean(0), torch.zeros(5), atol=1e-6)


def test_no_data_counts_steps():
    data = build("none", steps_per_epoch=7)
    assert data.task == Minimisation(input_shape=(), outputs=1)
    assert len(data.train) == data.train.steps(100) == data.train.steps(None) == 7
    batches = list(data.train.epoch(0, 100))
    assert len(batches) == 7
    assert len(list(data.train.epoch(0, 100, skip=5))) == 2
    assert list(data.train.epoch(0, 100, skip=9)) == []
    assert {(inputs.numel(), targets.numel(), len(inputs)) for inputs, targets in batches} == {(0, 0, 1)}
    assert len(list(data.test.in_order(10))) == 1
    stream = data.train.stream(1000, seed=0)
    next(stream)
    assert stream.position == 1
    stream.position = 41
    next(stream)
    assert stream.position == 42


def test_a_teacher_never_changes_and_its_splits_are_independent():
    data = build("teacher", dtype=torch.float64, train=50, validation=20, test=10)
    again = build("teacher", dtype=torch.float64, train=50, validation=20, test=10, seed=3)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, part).targets, getattr(again, part).targets)
    other = build("teacher", dtype=torch.float64, train=50, validation=20, test=10, split_seed=1)
    assert not torch.equal(data.test.targets, other.test.targets)
    longer = build("teacher", dtype=torch.float64, train=99, validation=20, test=10)
    assert torch.equal(data.test.inputs, longer.test.inputs)
    assert torch.allclose(data.train.targets, longer.train.targets[:50], rtol=1e-9)  # BLAS rounds by shape
    assert data.task == Regression(input_shape=(20,), outputs=5)
    assert data.test.targets[0, 0].item() == pytest.approx(PINNED_TEACHER, rel=1e-9)


PINNED_TEACHER = -0.4332918829081752


@pytest.mark.parametrize("activation", ["identity", "relu", "sigmoid", "tanh"])
def test_teacher_targets_are_its_answers_scaled_to_one(activation):
    from gnewton.data.builtin_sets import teacher_weights

    settings = recipe("teacher", activation=activation, hidden=[30], inputs=4, outputs=3, train=4000)
    data = settings.build(CPU, torch.float64, 0)
    first, second = (torch.from_numpy(matrix) for matrix in teacher_weights(settings))
    function = {"identity": lambda x: x}.get(activation) or getattr(torch, activation)
    expected = function(data.train.inputs @ first) @ second
    ratio = data.train.targets / expected
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-9)
    assert data.train.targets.square().mean().item() == pytest.approx(1, abs=0.15)


def test_noise_reaches_training_targets_only():
    clean = build("teacher", dtype=torch.float64)
    noisy = build("teacher", dtype=torch.float64, noise=0.5)
    assert (noisy.train.targets - clean.train.targets).std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(noisy.test.targets, clean.test.targets)
    assert torch.equal(noisy.validation.targets, clean.validation.targets)
