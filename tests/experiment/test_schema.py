"""The declared options of a run, and their roles: without its role an option would change the identity."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from gnewton.data.dataset_options import DATA
from gnewton.experiment.schema import Settings, declared_options, options_with, schema_of_saved
from gnewton.optim.options import SCHEDULES
from gnewton.options import Role
from gnewton.training.settings import TrainerSettings

ROLES = {
    Role.PLACE: {"output_root", "data.root", "data.path"},
    Role.PATH: {"resume", "optimizer.rates"},
    Role.OUTPUT: {"output_root", "resume", "logger"},
    Role.LABEL: {"name"},
    Role.RESUMABLE: {
        "imports",
        *("trainer.epochs", "trainer.max_steps", "trainer.max_seconds", "trainer.log_every"),
        *("trainer.checkpoint_every", "trainer.on_nonfinite", "trainer.divergence"),
        *("trainer.max_recoveries", "trainer.rollback_factor", "trainer.progress"),
        *("trainer.evaluation.every", "trainer.target.metric", "trainer.target.value"),
        *("trainer.early_stop.metric", "trainer.early_stop.patience", "trainer.early_stop.bounds"),
    },
    Role.COURSE: {
        *("trainer.epochs", "trainer.max_steps", "trainer.max_seconds", "trainer.log_every"),
        *("trainer.checkpoint_every", "trainer.progress", "trainer.evaluation", "trainer.target"),
        *("trainer.early_stop", "optimizer.schedule"),
    },
    Role.BUDGET: {"trainer.epochs", "trainer.max_steps", "trainer.max_seconds", "trainer.target.value"},
    Role.BATCHES: {"trainer.batch_size", "trainer.microbatch"},
    Role.RATES: {"optimizer.lr", "optimizer.rates"},
    Role.VIEW: {"partition", "trainer.device", "trainer.dtype"},
    Role.SAMPLES: {
        *("trainer.batch_size", "trainer.microbatch", "optimizer.curvature.batch_size"),
        *("trainer.evaluation.batch_size", "trainer.evaluation.max_samples"),
    },
}


@pytest.mark.parametrize("role", [role for role in Role if role], ids=str)
def test_the_options_of_every_role(role):
    assert set(options_with(role)) == ROLES[role]


def test_an_older_run_takes_the_value_from_before_an_option_existed():
    settings, decay, data = (schema_of_saved(kind) for kind in (Settings, SCHEDULES["cosine"], DATA["npz"]))
    trainer = schema_of_saved(TrainerSettings)
    assert (settings.logger, decay.warmup, data.layout) == ({}, 0, "channels_last")
    assert trainer.divergence is None
    assert {"seed", "name", "model"} <= OmegaConf.missing_keys(settings)
    assert "final_fraction" in OmegaConf.missing_keys(decay)
    assert "augment.flip" in OmegaConf.missing_keys(data)
    assert {"epochs", "evaluation.every", "target.value"} <= OmegaConf.missing_keys(trainer)


def test_several_roles_at_once():
    assert set(options_with(Role.OUTPUT | Role.LABEL)) == {"output_root", "resume", "logger", "name"}


def test_options_of_every_depth_are_declared():
    names = {option.name for option in declared_options()}
    assert {"seed", "model.widths", "data.augment.flip", "optimizer.direction.betas"} <= names
    assert {"optimizer.curvature.engine", "trainer.target.value", "logger.wandb.project"} <= names
