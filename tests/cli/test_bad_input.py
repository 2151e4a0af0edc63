"""Wrong commands: each ends with exit code 2 and one message that names what is wrong, before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TABLE: list[tuple[str, str]] = [
    # wrong type
    ("train optimizer=sgd optimizer.lr=abc", "optimizer.lr=abc: must be a number"),
    ("train trainer.epochs=1.5", "trainer.epochs=1.5: must be a whole number"),
    ("train trainer.epochs=ten", "trainer.epochs=ten: must be a whole number"),
    ("train trainer.epochs=true", "trainer.epochs=true: must be a whole number"),
    ("train trainer.epochs=[1]", "trainer.epochs=[1]: must be a whole number"),
    ("train trainer.epochs={a:1}", "trainer.epochs={a:1}: must be a whole number"),
    ("train trainer.deterministic=perhaps", "trainer.deterministic=perhaps: must be true or false"),
    ("train seed=1.5", "seed=1.5: must be a whole number"),
    ("train trainer.evaluation=3", "trainer.evaluation=3: holds several options"),
    ("train optimizer.averaging=uniform", "a group; choose one of it with optimizer/averaging=NAME"),
    # out of range
    ("train trainer.epochs=0", "trainer.epochs=0: must be a whole number >= 1"),
    ("train trainer.epochs=-3", "trainer.epochs=-3: must be a whole number >= 1"),
    ("train trainer.max_seconds=nan", "trainer.max_seconds=nan: must be a finite number > 0"),
    ("train trainer.max_seconds=inf", "trainer.max_seconds=inf: must be a finite number > 0"),
    ("train trainer.max_seconds=-inf", "trainer.max_seconds=-inf: must be a finite number > 0"),
    ("train optimizer=sgd optimizer.lr=0", "optimizer.lr=0.0: must be a finite number > 0"),
    ("train optimizer=sgd optimizer.lr=nan", "optimizer.lr=nan: must be a finite number > 0"),
    (
        "train optimizer=sgd optimizer.momentum=1",
        "optimizer.momentum=1.0: must be a finite number >= 0 and < 1",
    ),
    ("train optimizer.step_size=0", "optimizer.step_size=0.0: must be a finite number > 0"),
    ("train optimizer.step_size=1e400", "optimizer.step_size=inf: must be a finite number > 0"),
    ("train optimizer.period=0", "optimizer.period=0: must be a whole number >= 1"),
    ("train model.sigma_w=-1", "model.sigma_w=-1.0: must be a finite number > 0"),
    ("train seed=-1", "seed=-1: must be a whole number >= 0 and < 4294967296"),
    ("train seed=99999999999", "seed=99999999999: must be a whole number >= 0 and < 4294967296"),
    ("train partition=blocks partition.k=0", "partition.k=0: must be a whole number >= 1"),
    ("train trainer.log_every=0", "trainer.log_every=0: must be a whole number >= 1"),
    ("train trainer.target.value=nan", "trainer.target.value=nan: must be a finite number"),
    # null where there must be a value
    ("train trainer.epochs=null", "trainer.epochs=null: must have a value, null is not allowed"),
    ("train optimizer=sgd optimizer.lr=null", "optimizer.lr=null: must have a value, null is not allowed"),
    ("train seed=null", "seed=null: must have a value"),
    ("train name=null", "name=null: must have a value"),
    ("train output_root=null", "output_root=null: must have a value"),
    ("train trainer.epochs=???", "trainer.epochs: has no value; give it one with trainer.epochs=…"),
    # lists
    (
        "train optimizer=adam optimizer.betas=[0.9]",
        "optimizer.betas=[0.9]: must be a list of 2 entries, each",
    ),
    ("train optimizer=adam optimizer.betas=[]", "optimizer.betas=[]: must be a list of 2 entries, each"),
    ("train optimizer=adam optimizer.betas=[0.9,0.99,0.999]", "must be a list of 2 entries"),
    ("train optimizer=adam optimizer.betas=[0.9,1.5]", "each a finite number >= 0 and < 1"),
    (
        "train optimizer=adam optimizer.betas=0.9",
        "optimizer.betas=0.9: must be a list, such as optimizer.betas=[…]",
    ),
    ("train optimizer=adam optimizer.betas=[0.9,a]", "optimizer.betas=[0.9,a]: must be a number"),
    ("train optimizer=adam optimizer.betas=[0.9,null]", "null is not allowed within the list"),
    ("train model.widths=10", "model.widths=10: must be a list"),
    ("train model.widths=[10,0]", "model.widths=[10,0]: '0' is not a width"),
    ("train model.widths=[10,x]", "model.widths=[10,x]: 'x' is not a width"),
    ("train model.widths=[3*]", "model.widths=[3*]: '3*' is not a width"),
    ("train model.widths=10,20", "for a list write model.widths=[…], to sweep add --multirun"),
    ("train optimizer=sgd,adam", "optimizer=sgd,adam: one value is allowed"),
    (
        "train optimizer=[sgd,adam]",
        "optimizer=[sgd,adam]: must be one of adam, adamw, dadapt_adam, ",
    ),
    # unknown options and groups
    ("train optimizer=sgd optimizer.momentm=1", "no such option; did you mean 'optimizer.momentum'?"),
    (
        "train trainer.bach_size=10",
        "trainer.bach_size=10: no such option; did you mean 'trainer.batch_size'?",
    ),
    (
        "train data.augment.flp=true",
        "data.augment.flp=true: no such option; did you mean 'data.augment.flip'?",
    ),
    ("train optimizer.direction.weightdecay=1", "did you mean 'optimizer.direction.weight_decay'?"),
    (
        "train optimizer.engine=fast",
        "optimizer.engine=fast: no such option; did you mean 'optimizer.curvature.engine'? (options of",
    ),
    ("train optimizer=sgd optimizer.period=3", "it belongs to optimizer=grouped_newton"),
    (
        "train optimizer.damping=1",
        "damping=1: no such option; it has been renamed to optimizer.step_size (",
    ),
    ("train optimizer=adam optimizer.step_size=1", "it belongs to optimizer=grouped_newton"),
    ("train optimizer.lr=0.1", "no such option; it belongs to optimizer=adam or adamw or "),
    ("train data.path=x", "data.path=x: no such option; it belongs to data=npz"),
    ("train partition.k=3", "partition.k=3: no such option; it belongs to partition=alternate or blocks"),
    ("train optimiser=sgd", "optimiser=sgd: no such option; did you mean 'optimizer'?"),
    ("train lr=0.1", "lr=0.1: no such option; did you mean 'optimizer.lr'?"),
    ("train epochs=3", "did you mean 'trainer.epochs'?"),
    ("train xyzzy=3", "xyzzy=3: no such option (options: data, experiment, import, logger, "),
    ("train log_evry=3", "did you mean 'trainer.log_every'?"),
    ("train optimizer/shedule=cosine", "did you mean 'optimizer/schedule'?"),
    ("train optimizer=sgd optimizer/direction=adam", "the chosen optimizer has no direction"),
    ("train tuned=x", "tuned=x: no such group"),
    ("train hydra.foo=1", "hydra.foo=1: no such option"),
    ("train +foo=1", "+foo=1: no such option"),
    ("train +new.key=1", "+new.key=1: no such option"),
    ("train +optimizer.foo=1", "+optimizer.foo=1: no such option"),
    ("train ++trainer.foo=1", "++trainer.foo=1: no such option"),
    ("train resume=./~no_such_user", "resume=~no_such_user: there is no such folder"),
    ("inspect ./~no_such_user", "~no_such_user: "),
    ("train output_root=~no_such_user/x", "output_root=~no_such_user/x: there is no such user"),
    ("train ~model", "~model: every group and option is needed"),
    ("train ~trainer.epochs", "~trainer.epochs: every group and option is needed"),
    ("train ~foo", "~foo: every group and option is needed"),
    # unknown choices
    ("train optimizer=sdg", "optimizer=sdg: must be one of adam, adamw, dadapt_adam, dog, grouped_newton"),
    ("train optimizer=sdg", "; did you mean 'sgd'?"),
    ("train optimizer=SGD", "; did you mean 'sgd'?"),
    ("train model=mlpp", "did you mean 'mlp'?"),
    ("train data=cifar", "did you mean 'cifar10'?"),
    ("train partition=per_layer", "did you mean 'by_layer'?"),
    ("train optimizer/schedule=cosin", "did you mean 'cosine'?"),
    (
        "train optimizer/direction=rmsprp",
        "optimizer/direction=rmsprp: must be one of adam, adamw, average, gradient, ",
    ),
    ("train experiment=mlp_mnst", "did you mean 'mlp_mnist'?"),
    ("train model=", "model=: must be one of autoencoder, lenet"),
    (
        "train experiment=resnet18_imagenet optimizer/averaging=none",
        "optimizer/averaging=none: it has no optimizer.averaging.period, "
        "which configs/tuned/resnet18_imagenet-grouped_newton_paper.yaml sets",
    ),
    ("train model=null", "model=null: must be one of autoencoder, lenet"),
    ("train trainer=5", "trainer=5: must be one of default, quick"),
    ("train model.activation=rleu", "model.activation=rleu: must be one of identity, tanh, relu"),
    ("train model.activation=sigmoyd", "did you mean 'sigmoid'?"),
    ("train optimizer.negative_rates=Keep", "must be one of keep, clip, constrain; did you mean 'keep'?"),
    ("train trainer.dtype=float16", "trainer.dtype=float16: must be one of float32, float64"),
    ("train trainer.target.metric=foo", "trainer.target.metric=foo: must be one of train_loss"),
    # options that contradict each other, or do nothing
    (
        "train optimizer=sgd partition=blocks",
        "partition=blocks: has no effect, optimizer=sgd uses no partition",
    ),
    ("train optimizer=lbfgs trainer.batch_size=10", "optimizer=lbfgs always takes all training samples"),
    (
        "train optimizer=grouped_newton_full_batch trainer.batch_size=10",
        "optimizer=grouped_newton_full_batch always takes all training samples",
    ),
    (
        "train optimizer.solver=newton optimizer.internal_damping=2",
        "optimizer.internal_damping=2: has no effect, optimizer.solver=newton has no such term",
    ),
    (
        "train optimizer.solver=newton optimizer.negative_rates=constrain",
        "optimizer.negative_rates=constrain: optimizer.solver=newton has no such form",
    ),
    (
        "train optimizer=grouped_newton_noiseless optimizer/averaging=static",
        "optimizer.averaging.batches=4: needs optimizer.curvature.source=independent, or 1",
    ),
    (
        "train optimizer/direction=pair optimizer/direction@optimizer.direction.first=pair",
        "optimizer.direction.first.name=pair: must be a single direction",
    ),
    (
        "train optimizer.direction.weight_decay=-1",
        "optimizer.direction.weight_decay=-1.0: must be a finite number >= 0",
    ),
    ("train optimizer/controller=progres", "did you mean 'progress'?"),
    ("train optimizer/controller=overshoot", "must be one of constant, progress, rising"),
    ("train optimizer=outer_newton", "optimizer=outer_newton: must be one of "),
    ("train optimizer.rate_median=3", "optimizer.rate_median=3: no such option"),
    ("train optimizer.cap=0", "optimizer.cap=0.0: must be a finite number > 0"),
    (
        "train optimizer.curvature.source=training optimizer.curvature.batch_size=9",
        "batch_size=9: has no effect",
    ),
    ("train optimizer=sgd optimizer.nesterov=true optimizer.momentum=0", "needs optimizer.momentum > 0"),
    ("train model.name=x", "model.name=x: a label of the chosen file; choose another one with model=…"),
    ("train optimizer.schedule.name=cosine", "choose another one with optimizer/schedule=…"),
    ("train trainer.name=quick", "choose another one with trainer=…"),
    ("train trainer.target.metric=test_loss", "has no effect without trainer.target.value"),
    (
        "train trainer.target.metric=train_loss trainer.target.value=1 trainer.evaluation.train=false",
        "trainer.target.metric=train_loss: needs trainer.evaluation.train=true",
    ),
    ("train experiment=rosenbrock trainer.batch_size=4", "has no effect, data=none has no samples"),
    ("train model=autoencoder data.target=input", "data.normalise=true: must be false with target=input"),
    # model and data that do not fit
    ("train model=lenet", "model=lenet: needs images (channels, height, width) of at least 16×16 pixels"),
    ("train data=none", "model=mlp: needs inputs of at least one number; data gives no inputs"),
    ("train model=rosenbrock", "model=rosenbrock: needs no data (task: minimisation)"),
    ("train model=autoencoder", "model=autoencoder: needs data whose target is the input"),
    ("train experiment=rosenbrock model=mlp", "model=mlp: needs inputs of at least one number"),
    ("train model=rosenbrock data=none model.size=3", "model.size=3: must be even"),
    ("train model=rosenbrock data=none model.start=[1,2,3]", "must hold 2 numbers, or size=10"),
    (
        "train data=teacher trainer.target.value=0.5",
        "data=teacher has no accuracy; must be one of train_loss",
    ),
    # sizes
    (
        "train trainer.batch_size=5000",
        "trainer.batch_size=5000: must be <= 1200, the training samples of data=digits",
    ),
    (
        "train optimizer.curvature.source=independent optimizer.curvature.batch_size=5000",
        "optimizer.curvature.batch_size=5000: must be <= 1200",
    ),
    ("train data.subset=100000", "data.subset=100000: must be <= 1200"),
    ("train data=mnist data.subset=100000", "data.subset=100000: must be <= 54000"),
    ("train data.validation=100000", "must be < 1797"),
    ("train data.augment.crop_padding=8", "data.augment.crop_padding=8: must be < 8"),
    # partitions
    ("train partition=blocks partition.k=100", "k=100 must be from 1 to 4, the layers of this model"),
    (
        "train partition=patterns partition.patterns=[nothing]",
        "'nothing': no parameter matches; the model has hidden1",
    ),
    ("train partition=patterns partition.patterns=['(']", "'(' is no regular expression"),
    ("train partition=names", "partition.groups=[]: must list the parameters of each group"),
    (
        "train partition=names partition.groups=[[a]]",
        "partition=names: group 'a' names the unknown parameter 'a'",
    ),
    (
        "train partition=names partition.groups=[[hidden1.weight]]",
        "partition=names: no group holds hidden1.bias,",
    ),
    # files and folders
    ("train data=npz", "data.path: has no value; give it one with data.path=…"),
    ("train data=npz data.path=nope.npz", "data.path=nope.npz: nope.npz is not there"),
    ("train data=npz data.path=text.npz", "data.path=text.npz: text.npz is not an .npz file"),
    ("train data=npz data.path=short.npz", "data.path=short.npz: lacks the array y_test; it holds x_train"),
    ("train data=imagenet", "data.root="),
    ("train name=", "name=: must be the name of one folder"),
    ("train name=../x", "name=../x: must be the name of one folder, without slashes"),
    ("train name=/tmp", "name=/tmp: must be the name of one folder, without slashes"),
    ("train output_root=text.npz", "output_root: text.npz/mlp-digits-grouped_newton cannot be written"),
    # devices
    (
        "train trainer.device=gpu",
        "trainer.device=gpu: must be one of auto, cpu, cuda, cuda:0, cuda:1, …, mps",
    ),
    ("train trainer.device=cuda:99", "trainer.device=cuda:99: this machine has"),
    # interpolation
    ("train trainer.epochs=${foo}", "trainer.epochs=${foo}: Interpolation key 'foo' not found"),
    ("train trainer.epochs=${oc.env:NO_SUCH}", "Environment variable 'NO_SUCH' not found"),
    ("train trainer.epochs=${model.widths}", "trainer.epochs=${model.widths}: must be a whole number"),
    # syntax, commands and flags
    ("train model.widths=[10,20", "model.widths=[10,20: not of the form option=value"),
    ("train =3", "=3: not of the form option=value"),
    ("train model", "model: not of the form option=value"),
    ("train trainer.epochs==3", "trainer.epochs==3: not of the form option=value"),
    ("train --epochs=3", "unrecognized arguments: --epochs=3; options are given without dashes, as epochs=3"),
    ("train -x", "unrecognized arguments: -x"),
    ("train --cfg", "expected one argument"),
    ("train --cfg foo", "invalid choice: 'foo'"),
    ("train --config-dir=nowhere", "--config-dir nowhere: no such folder"),
    ("train --config-path=nowhere", "--config-path nowhere: no such folder"),
    ("train --run --multirun", "--run: does not go with --multirun"),
    ("train --cfg job --info", "Only one of"),
    ("trian", "trian: no such command (one of "),
    ("trian", "did you mean 'train'?"),
    ("--verbose", "--verbose: no such command"),
    ("data", "the following arguments are required"),
    ("data fetch", "data fetch: the following arguments are required: NAME"),
    ("data fetch nope", "nope' cannot be fetched: must be one of cifar10"),
    ("data list extra", "unrecognized arguments: extra"),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "short.npz", x_train=np.zeros((2, 3)), y_train=[0, 1], x_test=np.zeros((2, 3)))
    return tmp_path


@pytest.mark.parametrize(("command", "message"), TABLE, ids=[f"{row[0]} -> {row[1]}"[:90] for row in TABLE])
def test_wrong_command(command, message, files, cli):
    before = sorted(files.rglob("*"))
    answer = cli(command.split())
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.startswith("gnewton: ")
    assert answer.err.count("gnewton: ") == 1
    assert "Traceback" not in answer.err
    assert "Error executing job" not in answer.err
    assert "usage:" not in answer.err
    assert answer.out == ""
    assert sorted(files.rglob("*")) == before


def test_every_problem_is_listed_at_once(cli):
    answer = cli(["train", "trainer.epochs=0", "optimizer.period=0", "seed=-1"])
    assert answer.code == 2
    for option in ("trainer.epochs=0", "optimizer.period=0", "seed=-1"):
        assert f"{option}: must be" in answer.err


def test_missing_cuda_is_named(cli):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    answer = cli(["train", "trainer.device=cuda"])
    assert (answer.code, answer.err) == (
        2,
        "gnewton: trainer.device=cuda: this machine has 0 CUDA devices; use cpu or auto\n",
    )


def _process(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gnewton", *command.split()],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", ["train optimizer=sdg", "train trainer.epochs=0", "trian"])
def test_in_a_process_of_its_own(command, tmp_path):
    ended = _process(command, tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("gnewton: ")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train optimizer=sdg", "train trainer.epochs=0"])
def test_full_error_asks_for_the_traceback(command, tmp_path):
    ended = _process(command, tmp_path, HYDRA_FULL_ERROR="1")
    assert ended.returncode != 0
    assert "Traceback (most recent call last)" in ended.stderr
