"""Parts of the user's own: the example of docs/plugins.md in a foreign folder, entry points, refusals."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from gnewton.errors import InputError
from gnewton.experiment.own_parts import absolute_imports, digests, forget_all
from gnewton.registry import OWN_PARTS

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(\w+\.py)`[^`]*```python\n(.*?)```", PAGE, re.DOTALL))
EXAMPLE = FILES["own.py"]
COMMANDS = re.findall(r"^gnewton (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)
CHOICES = ["model=gated", "model.width=8", "data=rings", "optimizer=lion", "partition=ends"]
FEW = ["trainer.max_steps=3", "trainer.device=cpu"]


@pytest.fixture
def own(cli, tmp_path):
    """own(arguments) -> the answer of a command in a folder that holds own.py, the example."""
    (tmp_path / "own.py").write_text(EXAMPLE)
    yield cli
    forget_all()


def _run_folder():
    (folder,) = Path("outputs").glob("*/*")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page(own, tmp_path, command):
    """The commands of the page with few steps, in a folder that holds only the files of the page."""
    assert {"own.py", "pairs.py"} == set(FILES)
    assert len(COMMANDS) >= 5
    (tmp_path / "pairs.py").write_text(FILES["pairs.py"])
    answer = own([*command.split(), *([] if "--help" in command else FEW)])
    assert answer.code == 0, answer.err
    assert "--help" in command or (_run_folder() / "result.json").is_file()


def test_the_example_trains(own, tmp_path):
    answer = own(["train", "import=own.py", *CHOICES[:-1], *FEW, "model.width=32", "trainer.max_steps=100"])
    assert answer.code == 0, answer.err
    folder = _run_folder()
    assert folder.parent.name == "gated-rings-lion"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["imports"] == [str(tmp_path / "own.py")]
    assert config["model"] == {"name": "gated", "width": 32, "gate": "sigmoid"}
    assert list(json.loads((folder / "environment.json").read_text())["imports"]) == ["own.py"]
    assert pd.read_csv(folder / "metrics.csv").iloc[-1]["test_accuracy"] > 0.9


def test_a_run_is_inspected_repeated_and_resumed_after_its_file_has_moved(own, tmp_path):
    newton = ["model=gated", "model.width=8", "data=rings", "partition=ends", "trainer.batch_size=50"]
    assert own(["train", "import=own.py", *newton, *FEW]).code == 0
    folder = str(_run_folder())
    assert set(pd.read_csv(f"{folder}/rates.csv")["group"]) == {"before", "output"}
    assert own(["inspect", folder, "partition=single", "--batch-size=20", "--no-plots"]).code == 0
    forget_all()
    assert "reproduced: every value is the same" in own(["rerun", folder]).out
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "own.py", tmp_path / "elsewhere" / "parts.py")
    forget_all()
    for command in (["rerun", folder], ["train", f"resume={folder}"], ["inspect", folder]):
        answer = own(command)
        assert answer.code == 2
        assert f"its import={tmp_path / 'own.py'} does not exist; give import=FILE" in answer.err
    assert own(["train", f"resume={folder}", "trainer.max_steps=5", f"import={moved}"]).code == 0
    config = yaml.safe_load(Path(folder, "config.yaml").read_text())
    assert (config["imports"], config["trainer"]["max_steps"]) == ([str(moved)], 5)


def test_a_sweep_is_resumed_after_its_file_has_moved(own, tmp_path, monkeypatch):
    monkeypatch.setattr("gnewton.sweep.runner.run_sweep", lambda manifest, orders: None)
    assert own(["sweep", "import=own.py", *CHOICES[:-1], *FEW, "seed=0,1"]).code == 0
    (folder,) = Path("outputs/sweeps").glob("*")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "own.py", tmp_path / "elsewhere" / "parts.py")
    forget_all()
    answer = own(["sweep", "--resume", str(folder)])
    assert answer.code == 2
    assert f"its import={tmp_path / 'own.py'} does not exist; give import=FILE" in answer.err
    digests_before = pd.read_csv(folder / "manifest.csv")["hash"].tolist()
    assert own(["sweep", "--resume", str(folder), f"import={moved}"]).code == 0
    jobs = pd.read_csv(folder / "manifest.csv")
    assert jobs["hash"].tolist() == digests_before
    assert jobs["overrides"].str.contains(str(moved), regex=False).all()


def test_help_lists_the_choices_and_their_options(own):
    listed = own(["train", "--help", "import=own.py"]).out
    assert re.search(r"^  gated +One hidden layer of gated linear units\.$", listed, re.M)
    assert re.search(r"^  rings +Two noisy rings in the plane\.$", listed, re.M)
    options = own(["train", "import=own.py", "model=gated", "optimizer=lion", "--help"]).out
    assert re.search(r"^  model\.gate=sigmoid +of each unit  \[sigmoid, tanh\]$", options, re.M)
    assert "optimizer.momentum=0.9" in options
    assert "optimizer/schedule=constant" in options


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=gatd"], "model=gatd: must be one of .*; did you mean 'gated'?"),
        (["model=gated", "model.width=0"], "model.width=0: must be a whole number >= 1"),
        (["model=gated", "model.widht=3"], "model.widht=3: no such option; did you mean 'model.width'"),
        (["model=gated", "model.gate=relu"], "model.gate=relu: must be one of sigmoid, tanh"),
        (["data=rings", "data.noise=x"], "data.noise=x: must be a number"),
    ],
)
def test_options_are_checked(own, overrides, message):
    answer = own(["train", "import=own.py", *overrides])
    assert answer.code == 2
    assert re.match(f"gnewton: {message}", answer.err), answer.err


def test_a_sweep_hands_the_file_to_its_runs(own, tmp_path):
    answer = own(["sweep", "import=own.py", "model=gated,mlp", "optimizer=lion", "--dry-run"])
    assert answer.code == 0, answer.err
    assert f"'imports=[{tmp_path / 'own.py'}]' model=gated optimizer=lion" in answer.out
    answer = own(["sweep", "import=own.py", *CHOICES[:-1], *FEW])
    assert answer.code == 0, answer.err
    assert "1 done" in answer.out
    (folder,) = Path("outputs/sweeps").iterdir()
    forget_all()
    assert own(["sweep", "--resume", str(folder)]).code == 0


def test_tune_and_rates_load_the_file(own):
    assert own(["tune", "import=own.py", "model=gated", "data=rings", "optimizer=sgd", "--dry-run"]).code == 0
    answer = own(["rates", "import=own.py", "model=gated", "data=rings", "--batches=1", "--batch-size=20"])
    assert answer.code == 0, answer.err


def test_a_module_and_a_list(own, monkeypatch, tmp_path):
    package = tmp_path / "site" / "some_nets"
    package.mkdir(parents=True)
    source = EXAMPLE.replace('"gated"', '"gated_too"')
    source = re.sub(r'@(dataset|optimizer|partition)\("', r'@\1("other_', source)
    (package / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(package.parent))
    answer = own(["train", "import=[own.py,some_nets]", "model=gated_too", "data=rings", "--cfg", "job"])
    assert answer.code == 0, answer.err
    assert yaml.safe_load(answer.out)["imports"] == [str(tmp_path / "own.py"), "some_nets"]
    sys.modules.pop("some_nets", None)


def test_entries_are_absolute():
    assert absolute_imports("[a.py, 'b c.py',x.y]") == [
        str(Path("a.py").absolute()),
        str(Path("b c.py").absolute()),
        "x.y",
    ]
    assert absolute_imports("[]") == []
    assert absolute_imports("gone/../a.py") == absolute_imports("./a.py") == absolute_imports("a.py")
    with pytest.raises(InputError, match=r"^import=~no_such_user/a.py: there is no such user"):
        absolute_imports("~no_such_user/a.py")


def test_two_files_of_one_name_have_two_digests(tmp_path):
    files = [tmp_path / place for place in ("a/p.py", "b/p.py", "q.py")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(file))
    assert list(digests([*map(str, files), "some.module"])) == [str(files[0]), str(files[1]), "q.py"]


REFUSED = {
    "import=gone.py": "import={folder}/gone.py: there is no such file",
    "import=no_such.module": "import=no_such.module: there is no such module in the Python path",
    "import=a.py,b.py": "import=a.py,b.py: one value is allowed; for several write import=[a.py,b.py]",
    "import=": "import=: must be a Python file, the name of a module, or a list of them",
    "import=raises.py": "import={folder}/raises.py: line 3: ZeroDivisionError: division by zero",
    "import=syntax.py": "import={folder}/syntax.py: line 2: SyntaxError: ",
    "import=lacks.py": "import={folder}/lacks.py: line 1: ModuleNotFoundError: No module named 'gone_too'",
    "import=recipe.py": "import={folder}/recipe.py: line 3: model=mlp: there is a choice of this name",
    "import=file.py": "import={folder}/file.py: model=vgg11: there is a choice of this name already",
    "import=base.py": "import={folder}/base.py: line 2: TypeError: model 'mine' must derive from ModelRecipe",
    "import=type.py": "import={folder}/type.py: model=mine: ",
}
HEAD = "from gnewton.plugins import *\n"
SOURCES = {
    "raises.py": "x = 1\n\nx / 0\n",
    "syntax.py": "x = 1\ndef f(:\n",
    "lacks.py": "import gone_too\n",
    "recipe.py": f"{HEAD}\n@model('mlp')\nclass Mine(ModelRecipe):\n    pass\n",
    "file.py": f"{HEAD}@model('vgg11')\nclass Mine(ModelRecipe):\n    pass\n",
    "base.py": f"{HEAD}@model('mine')\nclass Mine:\n    pass\n",
    "type.py": f"{HEAD}@model('mine')\nclass Mine(ModelRecipe):\n    x: set = option(None, help='')\n",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_file_that_cannot_be_loaded_is_one_message(own, tmp_path, word):
    for name, source in SOURCES.items():
        (tmp_path / name).write_text(source)
    answer = own(["train", word, "model=mine"])
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("gnewton: " + REFUSED[word].format(folder=tmp_path))
    assert answer.err.count("\n") == 1
    assert not OWN_PARTS
    assert own(["train", "--cfg", "job"]).code == 0  # nothing of it is left


def test_a_file_that_fails_registers_nothing(own, tmp_path):
    (tmp_path / "half.py").write_text(EXAMPLE + "\n1 / 0\n")
    assert own(["train", "import=half.py"]).code == 2
    assert own(["train", "import=own.py", *CHOICES, "optimizer=sgd", "--cfg", "job"]).code == 0


def test_completion_knows_the_choices(own, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "gnewton train import=own.py model=ga")
    assert own(["-sc", "query=bash"]).out.split() == ["model=gated"]
    monkeypatch.setenv("COMP_LINE", "gnewton train import=own.py model=gated model.wi")
    assert own(["-sc", "query=bash"]).out.split() == ["model.width="]


def test_entry_points_of_an_installed_package(own, monkeypatch, tmp_path, capsys):
    site = tmp_path / "site"
    (site / "ringed-1.0.dist-info").mkdir(parents=True)
    (site / "ringed-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ringed\n")
    (site / "ringed-1.0.dist-info" / "entry_points.txt").write_text(
        "[gnewton.models]\nplain_net = ringed_net:Plain\nbroken = ringed_net:Missing\n"
        "[gnewton.datasets]\nrings = ringed_parts\n"
    )
    (site / "ringed_parts.py").write_text(EXAMPLE)
    (site / "ringed_net.py").write_text(
        "from gnewton.plugins import ModelRecipe, option\n"
        "class Plain(ModelRecipe):\n    width: int = option(4, help='units')\n"
    )
    monkeypatch.syspath_prepend(str(site))
    answer = own(["train", "model=plain_net", "data=rings", "optimizer=lion", "--cfg", "job"])
    assert answer.code == 0
    assert yaml.safe_load(answer.out)["model"] == {"name": "plain_net", "width": 4}
    assert "entry point broken = ringed_net:Missing (gnewton.models): AttributeError" in answer.err
    for name in ("ringed_parts", "ringed_net"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("optimizer", ["adam", "grouped_newton"])
def test_the_example_with_several_inputs_trains_in_whole_batches_and_in_pieces(cli, tmp_path, optimizer):
    page = PAGE.partition("## Several inputs")[2]
    (tmp_path / "pairs.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    command = re.search(r"```sh\ngnewton (.*)\n", page)[1].split()
    try:
        losses = []
        # drawn labels are others in pieces
        method = [f"optimizer={optimizer}"]
        method += ["optimizer.direction.fisher=empirical"] if optimizer == "grouped_newton" else []
        for place, piece in enumerate(["null", "7"]):
            sized = [
                f"trainer.microbatch={piece}",
                "trainer.batch_size=20",
                "trainer.dtype=float64",
                f"name={place}",
            ]
            answer = cli([*command, *method, *sized, "trainer.max_steps=20", "trainer.device=cpu"])
            assert answer.code == 0, answer.err
            (folder,) = Path("outputs", str(place)).glob("*")
            losses.append(pd.read_csv(folder / "metrics.csv")["test_loss"].tolist())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        assert losses[0][-1] < 0.95 * losses[0][0]
        assert cli(["inspect", str(folder), "--batch-size=50", "--no-plots"]).code == 0
    finally:
        forget_all()
