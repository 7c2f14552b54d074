"""The training step of the embedded transformer, on a tiny one."""

import importlib
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from stagevar_core.checkpoints import merge, prepare, read, read_lora
from stagevar_core.models.infinity import Infinity, InfinityConfig
from stagevar_core.pipeline import EMBEDDED, Pipeline
from stagevar_core.schedule import ScaleSchedule

FOLDER = Path(__file__).parents[2] / "scripts" / "train_embedded"
CONFIG = InfinityConfig(
    depth=2, width=64, heads=4, hidden=128, bits=8, text_width=32, null_rows=16, pool_heads=4
)

SCHEDULE = ScaleSchedule.of([(s, s) for s in (1, 2, 4, 6, 8)], (64, 64))


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


def test_an_editing_step_learns_from_pairs_that_depend_on_its_number_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    editing = importlib.import_module("editing")
    monkeypatch.setattr(editing, "SHARD", 4)
    small = replace(CONFIG, bits=16, null_rows=64, edits=True, moved_source=True)
    monkeypatch.setattr(editing, "EDITING", small)

    def encoder(pictures: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(pictures, 16).repeat(1, 6, 1, 1)[:, :16]

    def encode(texts: list[str]) -> list[torch.Tensor]:
        return [torch.full((len(text.split()), 32), 0.1 * len(text)) for text in texts]

    with torch.random.fork_rng():
        editing.cache_pairs(encoder, tmp_path, 4)
        settings = editing.EditTraining(steps=8, batch=2)
        pairs, model = editing.Pairs(tmp_path, encode, settings), Infinity(small)
        importlib.import_module("transformer").initialise(model)
        batches = [pairs(model, 0, SCHEDULE, 3) for _ in range(2)]
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
        optimiser, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
        for _ in range(8):
            loss = editing.edit_losses(model, SCHEDULE, pairs(model, 0, SCHEDULE, 3))
            optimiser.zero_grad()
            loss.sum().backward()
            losses.append(loss.detach())
            optimiser.step()
    assert losses[0].shape == (len(SCHEDULE),) and losses[-1].sum() < losses[0].sum()
    kinds = {edit[0] for edit in pairs.edits}
    assert len(kinds) >= 4 and len(pairs) >= 12


def test_a_lora_step_trains_its_layers_alone_and_the_file_fits_the_model(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    training = importlib.import_module("colour_lora")
    settings = training.LoraTraining(steps=4, scenes=8, batch=6, every=2, rank=2, alpha=4.0)
    pipeline = Pipeline.embedded(dtype=torch.float32, device="cpu")
    model, before = pipeline.transformer, Pipeline.embedded(dtype=torch.float32, device="cpu").transformer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = training.add_lora(model, settings)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert len(trained) == 2 * len(layers) == 60 and all(".lora_" in name for name in trained)
        for loss in training.Scenes(pipeline, settings).steps(model):
            loss.backward()
    with torch.no_grad():
        for layer in layers.values():
            assert layer.lora_up.weight.grad.abs().max() > 0
            layer.lora_up.weight.add_(0.01)
    training.save_lora(layers, settings.alpha, tmp_path / "lora.safetensors")
    checkpoint = prepare(*read(EMBEDDED["transformer"]))
    merge(checkpoint, [(read_lora(tmp_path / "lora.safetensors", checkpoint), 1.0)], torch.float32)
    x = torch.randn(3, 256)
    for index, block in enumerate(model.blocks):
        found = F.linear(
            x, checkpoint.tensors[f"blocks.{index}.cross_attn.kv.weight"], block.cross_attn.kv.linear.bias
        )
        assert torch.allclose(found, block.cross_attn.kv(x), atol=2e-3)
    assert all(
        torch.equal(b.ffn.fc1.weight, a.ffn.fc1.weight)
        for a, b in zip(before.blocks, model.blocks, strict=True)
    )
