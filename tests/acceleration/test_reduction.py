"""Regions on fewer tokens: what runs, what the other tokens get, and which tokens matter."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_core.acceleration.policy import ScalePlan, Seen
from stagevar_core.acceleration.reduction import Memory, Reduction, best, nearest, random_projection, watch
from stagevar_core.acceleration.scores import (
    SCORES,
    History,
    detail,
    settled,
    spread_order,
    token_scores,
)
from stagevar_core.models.draws import BitHead, TokenHead
from stagevar_core.network.rotary import rotary_angles, rotate
from stagevar_core.network.tokens import Site, TokenMap, resize_tokens
from stagevar_core.schedule import Scale
from tests.support.plans import BRANCHES, SPANS, WHOLE, Planned
from tests.support.tiny import SQUARE, TALL, Logits, prompts, run, same_codes, tiny_infinity

SMALL, LARGE = Scale(3, 2, 3), Scale(4, 4, 5)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def site(scale: Scale, start: int = 0, part: str = "blocks") -> Site:
    return Site(scale, range(start, start + 1), part)


# ---------------------------------------------------------------------------------------------- token maps


def test_tokens_are_gathered_or_mixed() -> None:
    x, keep, matrix = drawn(2, 6, 4), torch.tensor([[5, 0, 2], [1, 1, 4]]), drawn(2, 6, 3, seed=1)
    gathered = TokenMap(keep).apply(x)
    mixed = TokenMap(keep, matrix).apply(x)
    for row in range(2):
        for place, token in enumerate(keep[row]):
            assert torch.equal(gathered[row, place], x[row, token])
            expected = sum(matrix[row, j, place] * x[row, j] for j in range(6))
            assert torch.allclose(mixed[row, place], expected, atol=1e-5)
    assert TokenMap(keep).count == 3
    assert TokenMap(keep, matrix).apply(x.bfloat16()).dtype == torch.bfloat16


def test_tokens_turn_by_the_angles_of_their_places() -> None:
    angles = rotary_angles(SQUARE, SQUARE[2], 8)
    x, keep = drawn(2, 9, 3, 8), torch.tensor([[8, 0, 4], [3, 3, 1]])
    at = torch.tensor([[0, 1, 2], [0, 1, 2]])
    turned = rotate(x, angles)
    picked = torch.stack([x[row, keep[row]] for row in range(2)])
    result = rotate(picked, TokenMap(keep).positions(angles))
    for row in range(2):
        assert torch.allclose(result[row], turned[row, keep[row]], atol=1e-6)
    elsewhere = TokenMap(keep, at=at).positions(angles)
    assert torch.equal(elsewhere[:, 0], angles[:, :3]) and TokenMap(keep).positions(None) is None


class Fixed:
    """The same tokens in every region, all tokens restored to zero first."""

    def __init__(self, tokens: TokenMap, spans: tuple[range, ...]) -> None:
        self.tokens, self.spans = tokens, spans

    def reduce(self, x: Tensor, site: Site) -> TokenMap:
        return self.tokens

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap, site: Site) -> Tensor:
        return x.scatter(1, tokens.keep.unsqueeze(-1).expand_as(y), y)

    def code_weights(self) -> None:
        return None


@pytest.mark.parametrize("spans", [WHOLE, SPANS, BRANCHES], ids=["scale", "spans", "branches"])
def test_a_matrix_that_picks_is_a_gather(spans: tuple[range, ...]) -> None:
    model, scale = tiny_infinity(), SQUARE.final
    keep = torch.randperm(scale.tokens, generator=torch.Generator().manual_seed(0))[:13].expand(2, -1)
    one_hot = F.one_hot(keep, scale.tokens).mT.float()
    found = []
    for tokens in (TokenMap(keep), TokenMap(keep, one_hot), TokenMap(keep, one_hot, at=keep.flip(1))):
        seen, plan = Logits(), ScalePlan(reduction=Fixed(tokens, spans))
        trace = run(model, prompts(5), policy=Planned({-1: plan}), monitor=seen).trace.scales[-1]
        found.append((seen.raw[-1], trace))
    (gathered, plain), (mixed, counted), (moved, _) = found
    assert torch.allclose(gathered, mixed, atol=1e-5)
    assert (gathered - moved).abs().max() > 1e-3  # positions matter
    regions = len(spans) or 3 * model.config.depth
    assert counted.flops.reduction == regions * 2 * one_hot.numel() * model.config.width
    assert plain.flops.reduction == 0 and plain.computed == counted.computed == 13


@pytest.mark.parametrize("spans", [SPANS, BRANCHES], ids=["spans", "branches"])
def test_an_empty_region_computes_nothing(spans: tuple[range, ...]) -> None:
    model, calls, caches = tiny_infinity(), [], []
    new_cache = model.new_cache
    model.new_cache = lambda *a: caches.append(new_cache(*a)) or caches[-1]
    for layer, block in enumerate(model.blocks):
        block.ffn.register_forward_hook(lambda *a, layer=layer: calls.append(layer))

    def choose(x: Tensor, site: Site) -> TokenMap | None:
        return TokenMap(torch.empty(len(x), 0, dtype=torch.long)) if 0 in site.layers else None

    reduction = Reduction(spans, Memory(), choose, code_weight=0.0, images=1)
    result = run(model, prompts(5), policy=Planned({-2: ScalePlan(reduction=reduction)}))
    ran, scale, stored = [2] if spans else [1, 2], SQUARE[3], SQUARE.tokens - SQUARE.final.tokens
    assert calls == [0, 1, 2] * 3 + ran + [0, 1, 2]
    lengths = [caches[0].length(layer) for layer in range(3)]
    assert lengths == [stored - scale.tokens * (layer not in ran) for layer in range(3)]
    assert result.trace.scales[3].computed == pytest.approx(scale.tokens * len(ran) / 3)
    share = torch.full((1, scale.tokens), 0.5 if spans else 2 / 3)
    assert torch.allclose(reduction.code_weights(), share)


# --------------------------------------------------------------------------------------------- restoration


@pytest.mark.parametrize("mode", ["area", "bilinear", "nearest"])
def test_memory_follows_the_grid(mode: str) -> None:
    memory, value = Memory(mode), drawn(2, 6, 3)
    memory.put(site(SMALL), value)
    assert memory.get(site(LARGE, 1)) is None and memory.get(site(LARGE, part="ffn")) is None
    options = {"align_corners": False} if mode == "bilinear" else {}
    grid = F.interpolate(value.mT.reshape(2, 3, 2, 3), size=(4, 5), mode=mode, **options)
    assert torch.equal(memory.get(site(LARGE)), grid.reshape(2, 3, 20).mT)
    assert memory.get(site(Scale(9, 2, 3))) is value
    memory.narrow(slice(1, 2))
    assert torch.equal(memory.get(site(SMALL)), value[1:])


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("restoration", ["delta", "state", "anchor"])
def test_tokens_that_did_not_run_are_restored(restoration: str, remembered: bool) -> None:
    memory, keep = Memory("nearest"), torch.tensor([[0, 7, 19], [0, 7, 19]])
    before, after = drawn(2, 6, 3), drawn(2, 6, 3, seed=1)
    first = Reduction(WHOLE, memory, watch, restoration=restoration)
    if remembered:
        assert first.reduce(before, site(SMALL)) is None
        assert first.restore(before, after, None, site(SMALL)) is after
    reduction = Reduction(WHOLE, memory, lambda x, s: TokenMap(keep), restoration=restoration)
    x, y = drawn(2, 20, 3, seed=2), drawn(2, 3, 3, seed=3)
    tokens = reduction.reduce(x, site(LARGE))
    full = reduction.restore(x, y, tokens, site(LARGE))
    for row in range(2):
        for token in range(20):
            down, across = divmod(token, 5)
            source = (down * 2 // 4) * 3 + across * 3 // 5
            expected = x[row, token]
            if token in keep[row]:
                expected = y[row, keep[row].tolist().index(token)]
            elif restoration == "anchor":
                near = min(
                    range(3), key=lambda k: (down - keep[0, k] // 5) ** 2 + (across - keep[0, k] % 5) ** 2
                )
                expected = x[row, token] + y[row, near] - x[row, keep[row, near]]
            elif remembered:
                moved = after[row, source] - (before[row, source] if restoration == "delta" else 0)
                expected = moved + (x[row, token] if restoration == "delta" else 0)
            assert torch.allclose(full[row, token], expected, atol=1e-6), (row, token)
    kept = {"delta": full - x, "state": full, "anchor": None}[restoration]
    again = memory.get(site(LARGE))
    assert again is None if kept is None else torch.allclose(again, kept, atol=1e-6)


def test_what_is_remembered_of_tokens_that_did_not_run_stays_bit_for_bit() -> None:
    # Two equal tokens stay equal, so that the order of scores does not hang on rounding.
    memory, change = Memory("nearest"), drawn(1, 6, 3)
    memory.put(site(SMALL), change)
    for scale in (LARGE, Scale(5, 4, 5)):
        reduction = Reduction(WHOLE, memory, lambda x, s: TokenMap(torch.tensor([[7]])))
        x, before = 50.0 * drawn(1, 20, 3, seed=scale.index), memory.get(site(scale))
        reduction.restore(x, x[:, 7:8] + 1.0, reduction.reduce(x, site(scale)), site(scale))
        after, untouched = memory.get(site(scale)), [token for token in range(20) if token != 7]
        assert torch.equal(after[:, untouched], before[:, untouched])
        assert torch.allclose(after[:, 7], torch.ones(1, 3), atol=1e-4)


def test_only_the_regions_that_it_is_about_are_reduced_and_remembered() -> None:
    memory, keep = Memory(), torch.tensor([[0, 1]])
    where = {"where": lambda s: s.part == "ffn"}
    reduction = Reduction(BRANCHES, memory, lambda x, s: TokenMap(keep), **where)
    x = drawn(1, 20, 3)
    assert reduction.reduce(x, site(LARGE, part="self")) is None
    assert reduction.restore(x, x + 1, None, site(LARGE, part="self")).equal(x + 1)
    assert reduction.reduce(x, site(LARGE, part="ffn")).keep is keep
    reduction.restore(x, x[:, :2], TokenMap(keep), site(LARGE, part="ffn"))
    assert memory.get(site(LARGE, part="self")) is None and memory.get(site(LARGE, part="ffn")) is not None


def test_codes_count_by_the_regions_that_ran() -> None:
    keeps = [torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1, 2], [1, 2]]), None]
    for weight, expected in ((0.0, [2, 3, 2, 1]), (0.25, [3, 4, 3, 2]), (1.0, None)):
        pending = iter(keeps)
        reduction = Reduction(
            BRANCHES,
            Memory(),
            lambda x, s, pending=pending: None if (keep := next(pending)) is None else TokenMap(keep),
            code_weight=weight,
            images=1,
        )
        for layer in range(3):
            reduction.reduce(drawn(2, 4, 3), site(Scale(1, 2, 2), layer))
        found = reduction.code_weights()
        if expected is None:
            assert found is None
        else:
            assert torch.allclose(found, torch.tensor([expected]) / (3 if weight == 0 else 4))
            assert found[0, 1] == 1.0  # exactly: codes of tokens that ran keep their bits


def test_the_nearest_token_is_found_on_any_grid() -> None:
    scale, keep = Scale(0, 7, 4), torch.tensor([[3, 9, 27], [0, 14, 20]])
    found = nearest(keep, scale)
    for row in range(2):
        for token in range(28):
            distances = [(token // 4 - k // 4) ** 2 + (token % 4 - k % 4) ** 2 for k in keep[row].tolist()]
            assert distances[found[row, token]] == min(distances)


def test_resizing_to_the_same_grid_changes_nothing() -> None:
    x = drawn(1, 6, 2)
    assert resize_tokens(x, SMALL, Scale(7, 2, 3), "area") is x


# ----------------------------------------------------------------------------------------- which tokens run


def test_both_rows_of_an_image_run_the_same_best_tokens() -> None:
    scores = torch.tensor([[1.0, 5, 2, 2], [9, 0, 0, 1], [4, 0, 2, 2], [0, 3, 1, 0]])
    # Images are rows 0 and 2, 1 and 3; equal scores go to the first in raster order.
    assert best(scores, 2, images=2).tolist() == [[0, 1], [0, 1], [0, 1], [0, 1]]
    assert best(scores, 3, images=4).tolist() == [[1, 2, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2]]
    assert best(torch.ones(2, 500), 100, images=2)[1].tolist() == list(range(100))


def test_projections_belong_to_an_image_and_its_seed() -> None:
    x = drawn(4, 30, 5)
    tokens = random_projection(x, 7, generators(1, 2), raster_positions=False)
    assert tokens.matrix.shape == (4, 30, 7) and tokens.keep.shape == (4, 7) and tokens.at is tokens.keep
    for stored in (tokens.matrix, tokens.keep):
        assert torch.equal(stored[:2], stored[2:]) and not torch.equal(stored[0], stored[1])
    assert all(len(set(row)) == 7 for row in tokens.keep.tolist())
    alone = random_projection(x[1::2], 7, generators(2), raster_positions=True)
    assert torch.equal(alone.matrix, tokens.matrix[1::2]) and torch.equal(alone.keep, tokens.keep[1::2])
    assert alone.at.tolist() == [list(range(7))] * 2
    wide = random_projection(drawn(1, 400, 2), 50, generators(0), raster_positions=True)
    assert wide.matrix.std().item() == pytest.approx(50**-0.5, rel=0.02)


def test_tokens_are_drawn_by_their_squared_norm() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])[None, :, None]  # chances 1 : 4 : 9 for the first of one
    source, counts = generators(5), [0, 0, 0]
    for _ in range(2000):
        counts[random_projection(x, 1, source, raster_positions=True).keep.item()] += 1
    expected = [2000 * share / 14 for share in (1, 4, 9)]
    assert sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True)) < 13.8  # 99.9% of chi2, 2 dof


def history(scale: Scale, images: int) -> History:
    found, head = History(), BitHead(4)
    logits, change = drawn(images, scale.tokens, 8, seed=4), drawn(images, 3, 8, 10, seed=5)
    found.observe(Seen(scale, change, change, logits, logits, head.choices, head.entropy))
    return found


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_an_image_do_not_depend_on_its_batch(name: str) -> None:
    x, delta, past = drawn(4, 20, 3), drawn(4, 20, 3, seed=1), history(SMALL, 2)
    every = {"site": site(LARGE), "delta": delta, "history": past, "generators": generators(1, 2)}
    both = token_scores(name, x, **every)
    assert both.shape == (4, 20) and both.isfinite().all()
    alone = History(past.scale, past.entropy[1:], past.codes[1:])
    one = {"site": site(LARGE), "delta": delta[1::2], "history": alone, "generators": generators(2)}
    assert torch.allclose(token_scores(name, x[1::2], **one), both[1::2], atol=1e-6)


def test_the_last_bits_of_a_change_settle_no_order() -> None:
    scores = torch.tensor([1.5, 27493.97, 0.25, 0.0])
    above = torch.nextafter(scores, torch.tensor(torch.inf))
    assert (above > scores).all() and torch.equal(settled(above), settled(scores))
    assert (settled(1.001 * scores)[:3] > settled(scores)[:3]).all()


def test_scores_measure_what_they_say() -> None:
    x, delta, past = drawn(1, 20, 3), drawn(1, 20, 3, seed=1), history(SMALL, 1)

    def score(name: str, **other) -> Tensor:
        every = {"delta": delta, "history": past, "generators": generators(1)} | other
        return token_scores(name, x, site(LARGE), **every)[0]

    norms = torch.stack([token.square().sum() for token in x[0]])
    assert torch.allclose(score("norm"), norms)
    assert torch.allclose(score("distance"), torch.stack([(t - x[0].mean(0)).square().sum() for t in x[0]]))
    assert torch.equal(score("change"), settled(delta[0].square().sum(-1)))
    corner = x[0, 0] - x[0, [0, 1, 5, 6]].mean(0)
    assert torch.allclose(score("detail")[0], corner.square().sum())
    assert torch.equal(score("change", delta=None), score("detail"))
    assert torch.equal(score("entropy", history=History()), score("detail"))
    resized = resize_tokens(past.entropy, SMALL, LARGE, "bilinear")[0, :, 0]
    assert torch.equal(score("entropy"), resized) and not torch.equal(score("codes"), resized)
    with pytest.raises(ValueError, match="unknown score 'size'; expected one of"):
        score("size")


def test_any_number_of_grid_tokens_is_spread_evenly() -> None:
    scale = Scale(0, 24, 16)
    for share in (0.1, 0.25, 0.5):
        keep = best(spread_order(scale, torch.device("cpu")), round(share * scale.tokens), images=1)
        chosen = torch.zeros(scale.tokens).scatter(0, keep[0], 1.0).reshape(1, 1, 24, 16)
        shares = F.avg_pool2d(chosen, 8)
        assert (shares - share).abs().max() < 0.06


def test_entropy_is_that_of_the_choices() -> None:
    bits, tokens = BitHead(4), TokenHead(8, smooth_filters=True, smooth_draws=1)
    assert bits.entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(1.0)
    assert tokens.entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(3.0)
    certain = torch.tensor([[[90.0, -90.0, 0.0, 0.0]]])
    assert bits.entropy(certain).item() == pytest.approx(0.5)
    assert tokens.entropy(certain).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 4)])
def test_a_flat_map_has_no_detail(shape: tuple[int, int]) -> None:
    assert detail(torch.full((1, 2, *shape), 3.0)).abs().max() < 1e-6


@pytest.mark.parametrize("schedule", [SQUARE, TALL], ids=["square", "tall"])
def test_a_region_watched_is_a_region_run(schedule) -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    dense = run(model, text, schedule)
    for spans in (WHOLE, SPANS, BRANCHES):
        plan = ScalePlan(reduction=Reduction(spans, Memory(), watch))
        watched = run(model, text, schedule, policy=Planned({}, plan))
        assert same_codes(dense, watched) and torch.equal(dense.f_hat, watched.f_hat)
