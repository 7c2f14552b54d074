"""A tiny step of every phase of the artwork model, on drawings made up here; nothing is fetched."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from scripts.train_artwork import compose, judging, sources, tokenizer, tokens, transformer
from scripts.train_artwork.codebook import Codebook, kmeans
from scripts.train_artwork.parallel import Workers, run

ALONE = Workers()
JUDGE = judging.JudgeTraining(steps=2, batch=4)
TOKENIZER = tokenizer.TokenizerTraining(plain=1, steps=3, plain_batch=2, batch=1)
TRANSFORMER = transformer.TransformerTraining(
    steps=4, early=1, whole=1, early_batch=2, window_batch=1, whole_batch=1
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A working folder with discs and squares for the first classes."""
    out = tmp_path_factory.mktemp("artwork")
    y, x = np.mgrid[0 : sources.SIDE, 0 : sources.SIDE]
    centre = sources.SIDE / 2
    disc = (np.hypot(x - centre, y - centre) < centre) * 255
    pictures = [np.dstack([np.full_like(disc, shade), disc // 2, disc, disc]) for shade in (20, 90, 200)]
    labels, sets = np.array([0, 1, 2]), np.array([0, 1, 1])
    np.savez(out / "artwork.npz", pictures=np.array(pictures, np.uint8), labels=labels, sets=sets)
    return out


@pytest.fixture(scope="module")
def trained(drawn):
    """The same after one tiny run of every phase."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(tokens, "SHARD", 8)
    patch.setattr(judging, "tested", partial(judging.tested, count=4))
    patch.setattr(tokenizer, "evaluate", partial(tokenizer.evaluate, count=2))
    patch.setattr(transformer, "shown_scores", partial(transformer.shown_scores, count=2))
    try:
        judging.train_judge(drawn, JUDGE, workers=ALONE)
        tokenizer.train_tokenizer(drawn, TOKENIZER, workers=ALONE)
        tokens.cache_tokens(drawn, 8, workers=ALONE)
        transformer.train_transformer(drawn, TRANSFORMER, workers=ALONE)
    finally:
        patch.undo()
    return drawn


def test_every_class_is_named_once_and_every_set_says_its_licence():
    known = sources.listed()
    count = len(sources.class_names())
    assert count == 150
    assert len({name.lower() for name in known["classes"]}) == count
    assert len(set(known["classes"].values())) == count
    assert {each["licence"] for each in known["sets"]} == {"Apache-2.0", "MIT", "CC-BY-4.0"}
    assert compose.FIXED <= set(sources.class_names())


def test_pictures_have_the_drawing_inside_and_unseen_backgrounds_are_others(drawn):
    artwork = sources.gather(drawn)
    rng = np.random.default_rng(0)
    for kind in ("model", "any", "unseen"):
        pictures, labels = compose.Composer(artwork, 64, kind).batch(rng, 6)
        assert pictures.shape == (6, 64, 64, 3) and pictures.dtype == torch.uint8
        assert set(labels.tolist()) <= {0, 1, 2}
    assert not set(compose.UNSEEN) & set(compose.PATTERNS)
    for pattern in (*compose.PATTERNS, *compose.UNSEEN):
        shares = compose.shares(pattern, 64, 16.0, (0.2, 0.7))
        assert shares.min() >= 0 and shares.max() <= 1
        assert (shares.std() > 0.1) == (pattern != "plain")


def test_the_same_seed_composes_the_same_pictures(drawn):
    composer = compose.Composer(sources.gather(drawn), 64, "any")
    first, second = (composer.batch(np.random.default_rng(3), 4)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_clusters_find_separate_groups():
    torch.manual_seed(0)
    groups = torch.arange(8.0).view(8, 1, 1) * 10 + torch.randn(8, 50, 2) * 0.1
    centres = kmeans(groups.flatten(0, 1), 32)
    assert torch.cdist(groups.mean(dim=1), centres).amin(dim=1).max() < 1


def test_codes_move_towards_what_chose_them_and_unused_ones_begin_again():
    torch.manual_seed(0)
    model = tokenizer.VQTokenizer(tokenizer.CONFIG)
    tokenizer.initialise(model)
    codebook = Codebook(model.quantize, ALONE, decay=0.0)
    features = torch.full((1, tokenizer.CONFIG.dim, 4, 4), 7.0)
    codebook.observe([(features, torch.full((1, 4, 4), 5))])
    codebook.update(restart=True)
    assert torch.allclose(model.quantize.codebook[5], torch.full((tokenizer.CONFIG.dim,), 7.0))
    assert torch.allclose(model.quantize.codebook[6], model.quantize.codebook[5])  # began again there


def test_quantizing_in_training_is_what_the_tokenizer_does():
    torch.manual_seed(0)
    model = tokenizer.VQTokenizer(tokenizer.CONFIG)
    tokenizer.initialise(model)
    z = torch.randn(2, tokenizer.CONFIG.dim, 32, 32)
    after, chosen = tokenizer.quantized(model, z)
    ids, f_hat = model.quantize.encode(z, tokenizer.SCHEDULE)
    assert all(torch.equal(a, b) for a, (_, b) in zip(ids, chosen, strict=True))
    assert torch.allclose(after[-1], f_hat, atol=1e-5)


def test_a_window_sees_the_same_part_of_every_late_scale():
    view = transformer.window(np.random.default_rng(0))
    assert view.counts == (1, 4, 9, 16, 36, 81, 169, 81, 144, 256)
    assert len(set(view.rows.tolist())) == sum(view.counts)
    starts = np.cumsum([0, *(scale.tokens for scale in transformer.SCHEDULE)])
    late = view.rows[-256:] - starts[-2]
    top = float(late.min()) // 32 / 16
    middle = view.rows[-400:-256] - starts[-3]
    assert abs(float(middle.min()) // 24 / 12 - top) < 0.1


def test_a_view_of_all_tokens_is_the_ordinary_teacher_forced_pass():
    from stagevar_core.conditioning.types import ClassConditioning
    from stagevar_core.models.teacher import teacher_forced

    torch.manual_seed(0)
    config = replace(transformer.CONFIG, depth=1, width=64, heads=1, hidden=64)
    model = transformer.VAR(config)
    transformer.initialise(model)
    labels = torch.tensor([3, 5])
    inputs = torch.randn(2, 2239, config.dim)
    targets = torch.randint(config.vocab, (2, 2240))
    with torch.no_grad():
        view = transformer.first_scales(10)
        losses = transformer.scale_losses(model, view, labels, inputs, targets)
        conditioning = ClassConditioning((3, 5), None, torch.device("cpu"))
        logits = teacher_forced(model, conditioning, inputs, transformer.SCHEDULE)
    wrong = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none").mean(dim=0)
    expected = torch.stack([part.mean() for part in wrong.split(list(view.counts))])
    assert torch.allclose(losses, expected, atol=0.02)


def test_every_phase_trains_and_resumes(trained):
    for name, steps in (("judge", 2), ("tokenizer", 3), ("transformer", 4)):
        state = torch.load(trained / f"{name}.pt", weights_only=True)
        assert state["step"] == steps
        lines = [json.loads(line) for line in (trained / f"{name}.jsonl").read_text().splitlines()]
        assert lines
    judging.train_judge(trained, JUDGE, workers=ALONE)  # finished: nothing runs
    transformer.train_transformer(trained, TRANSFORMER, workers=ALONE)
    store = tokens.TokenStore(trained)
    assert store.tokens.shape == (8, 2240)


def test_the_schedule_of_training_ends_on_all_tokens():
    s = transformer.TransformerTraining()
    assert s.part(0) == "early" and s.part(s.steps - 1) == "whole"
    assert {s.part(s.early + step) for step in range(3)} == {"early", "window"}


def _doubled(folder, *, workers):
    value = workers.summed(torch.tensor([float(workers.rank + 1)]))
    (folder / f"{workers.rank}.txt").write_text(str(float(value)))


@pytest.mark.slow
def test_processes_sum_what_they_have(tmp_path):
    run(_doubled, tmp_path, count=2, out=tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["3.0", "3.0"]
