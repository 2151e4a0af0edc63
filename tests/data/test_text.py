"""``data=tiny_text``: blocks of the embedded text in order, and answers per token counted right."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from gnewton.data import builtin_sets
from gnewton.data.builtin_sets import OTHER, encode, read_text
from gnewton.data.dataset_options import DATA, TEXT_CHARACTERS
from gnewton.errors import InputError
from gnewton.tasks import TokenClassification
from gnewton.training.evaluate import evaluate
from gnewton.training.state import Meter
from gnewton.training.training_step import add_gradient
from tests.recipes import recipe

CPU = torch.device("cpu")


def build(*overrides):
    options = recipe(DATA, "digits", "tiny_text", *overrides)
    return options.build(CPU, torch.float32, 0)


def test_the_blocks_are_the_text_in_order_and_the_targets_one_character_later():
    data = build("data.block=100", "data.validation=7", "data.test=5")
    alphabet = "".join(sorted(set(read_text())))
    assert data.task == TokenClassification((100,), len(alphabet), symbols=len(alphabet))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1987, 7, 5]
    parts = [next(iter(part.in_order(2000))) for part in (data.train, data.validation, data.test)]
    inputs, targets = (torch.cat(pieces).flatten().tolist() for pieces in zip(*parts, strict=True))
    assert "".join(alphabet[code] for code in inputs) == read_text()[:199_900]
    assert targets[:-1] == inputs[1:]
    assert alphabet[targets[-1]] == read_text()[199_900]
    assert (len(read_text()), read_text()[:14]) == (TEXT_CHARACTERS, "First Citizen:")


def test_the_alphabet_keeps_the_most_frequent_symbols():
    codes, alphabet = encode("abracadabra", 2)
    assert alphabet == "ab" + OTHER
    assert codes.tolist() == [0, 1, 2, 0, 2, 0, 2, 0, 1, 2, 0]
    assert encode("abc", 3)[1] == "abc"
    assert encode("abc", None)[1] == "abc"
    assert build("data.lower=true").task.outputs == 37
    assert build("data.symbols=10").task.outputs == 11


def test_a_subset_is_the_beginning_and_moves_nothing_else():
    whole, few = build(), build("data.subset=3")
    assert len(few.train) == 3
    for part in ("validation", "test"):
        one, other = (next(iter(getattr(data, part).in_order(500))) for data in (whole, few))
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.block=1000"], "data.test=200: must be < 199.*together with validation=200"),
        (["data.block=100000"], "data.block=100000: must be <= 66664, for a block in each"),
        (["data.subset=2725"], "data.subset=2725: must be <= 2724"),
        (["data.block=0"], "data.block=0: must be a whole number >= 1"),
        (["model=mlp"], r"model=mlp: needs inputs that are numbers.*shape \(64,\) \(task: token cl"),
        (["model=lenet"], "model=lenet: needs images"),
        (["model=transformer", "model.width=6"], "model.width=6: must be a multiple of heads=4"),
        (["model=transformer", "data=digits"], "model=transformer: needs tokens, as in data=tiny_text"),
    ],
)
def test_options_that_do_not_fit_the_text_are_refused(run, overrides, message):
    with pytest.raises(InputError, match=message):
        run(["data=tiny_text", *overrides])


def test_a_damaged_text_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin_sets, "TEXT_FILE", tmp_path / "tiny_text.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_text()
    (tmp_path / "tiny_text.txt").write_text("First Citizen:")
    with pytest.raises(InputError, match="is damaged"):
        read_text()


class Bigrams(torch.nn.Module):
    """A table of logits."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(62, 62, dtype=torch.float64)

    def forward(self, tokens):
        return self.table(tokens)


def test_loss_and_accuracy_are_means_over_samples_and_tokens():
    data, model = build("data.block=9"), Bigrams()
    inputs, targets = next(iter(data.validation.in_order(200)))
    outputs = model(inputs)
    wanted = F.cross_entropy(outputs.reshape(-1, 62), targets.reshape(-1)).item()
    right = (outputs.argmax(2) == targets).double().mean().item()
    assert data.task.loss(outputs, targets).item() == pytest.approx(wanted, rel=1e-14)
    for size in (200, 7):  # the last batch is smaller
        score = evaluate(model, data.task, data.validation, size)
        assert (score.loss, score.accuracy) == pytest.approx((wanted, right), rel=1e-13)
    meter = Meter()
    meter.answers = data.task.answers
    for part in (slice(0, 60), slice(60, 200)):
        loss = data.task.loss(outputs[part], targets[part])
        meter.record(0, loss, data.task.correct(outputs[part], targets[part]), len(inputs[part]))
    meter.read()
    assert (meter.loss, meter.accuracy()) == pytest.approx((wanted, right), rel=1e-13)


def test_microbatches_add_up():
    data, model = build("data.block=9"), Bigrams()
    batch = next(iter(data.validation.in_order(10)))
    pieces = copy.deepcopy(model)
    whole = add_gradient(model, data.task, batch, None)
    cut = add_gradient(pieces, data.task, batch, 4)
    assert cut[0].item() == pytest.approx(whole[0].item(), rel=1e-14)
    assert int(cut[1]) == int(whole[1])
    torch.testing.assert_close(pieces.table.weight.grad, model.table.weight.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("optimizer", ["grouped_newton", "adam", "kfac"])
def test_a_small_transformer_learns(run, optimizer):
    small = ["experiment=transformer_text", "model.width=16", "model.depth=1", "model.heads=2"]
    small += ["data.block=16", "data.subset=160", "data.validation=20", "data.test=20", "trainer.epochs=2"]
    report = run([*small, f"optimizer={optimizer}", "trainer.batch_size=16", "trainer.evaluation.train=true"])
    assert report.outcome.metrics["train_loss"] < 3.7  # that of equal probabilities is 4.13
    assert 0.1 < report.outcome.metrics["train_accuracy"] < 1
