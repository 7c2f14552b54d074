"""The training step of the embedded transformer, on a tiny one."""

import importlib
from pathlib import Path

import torch

from stagevar_core.models.infinity import Infinity, InfinityConfig
from stagevar_core.schedule import ScaleSchedule

FOLDER = Path(__file__).parents[2] / "scripts" / "train_embedded"
CONFIG = InfinityConfig(
    depth=2, width=64, heads=4, hidden=128, bits=8, text_width=32, null_rows=16, pool_heads=4
)


def test_a_step_reaches_every_parameter_and_the_loss_falls(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    training = importlib.import_module("transformer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Infinity(CONFIG)
        training.initialise(model)
        schedule = ScaleSchedule.of([(1, 1), (2, 2), (4, 4)])
        text, mask = torch.randn(3, 6, 32), torch.ones(3, 1, 1, 6, dtype=torch.bool)
        inputs, targets = torch.randn(3, 20, 8), torch.randint(0, 2, (3, 21, 8)).float()
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss = training.scale_losses(model, schedule, text, mask, inputs, targets)
            optimiser.zero_grad()
            loss.sum().backward()
            losses.append(loss.detach())
            optimiser.step()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {"null_text"}  # guided rows are not part of a training step
    assert losses[0].shape == (3,) and losses[-1].sum() < 0.9 * losses[0].sum()
