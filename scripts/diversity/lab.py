"""The embedded model, captions, and the ways to make four pictures of each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagevar_core.acceleration.policy import FirstScales
from stagevar_core.autoencoders.bsq import BitwiseQuantizer
from stagevar_core.evaluation.diversity import Diversity, diversity
from stagevar_core.evaluation.score import held_out
from stagevar_core.models.draws import bit_probabilities
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.sampling.variety import most_different
from stagevar_core.scenes import parse, place, render
from stagevar_core.schedule import Scale

from .methods import Changed, Making

SEED = 2000
SHOWN, DRAFTS = 4, 16  # pictures and drafts of a caption
TOGETHER = {SHOWN: 10, DRAFTS: 3}  # captions of a batch
STRUCTURE = 5  # scales
TEMPERATURE, GUIDANCE = 0.7, 2.0  # the model's own
Pictures = np.ndarray  # (captions, pictures, 128, 128, 3) in bytes


class Seeds:
    """The noise of images with any seeds."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self._each = [SeededNoise(seed, 1) for seed in seeds]

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draws of ``shape`` (B, ...)."""
        return torch.cat([one.exponential(scale, (1, *shape[1:]), device) for one in self._each])

    def uniform(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draws of ``shape`` (B, ...) out of the second stream."""
        return torch.cat([one.uniform(scale, (1, *shape[1:]), device) for one in self._each])

    def image(self, index: int) -> "Seeds":
        """Those of one image."""
        return Seeds(self.seeds[index : index + 1])


class Watched(Monitor):
    """Remembers the guided logits of every scale, and the latent after it."""

    def __init__(self) -> None:
        self.guided: list[Tensor] = []
        self.latents: list[Tensor] = []

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        self.guided.append(guided)

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self.latents.append(f_hat)


class Drafts:
    """All drafts of some captions: pictures, latents (captions, drafts, values), and how likely they are."""

    def __init__(self, pictures: Pictures, latents: Tensor, likely: Tensor) -> None:
        self.pictures, self.latents, self.likely = pictures, latents, likely


Picking = Callable[[Drafts, int], list[int]]  # of one caption, by its place


class Lab:
    """The embedded model, captions, and how their pictures are made."""

    def __init__(self, prompts: int) -> None:
        self.pipeline = Pipeline.embedded()
        self.schedule = self.pipeline.schedule()
        self.captions = [caption for _, caption in held_out(prompts, SEED)]

    def settings(self, first: int = 0, **early: float) -> SamplingSettings:
        """The model's own settings, with other numbers at the first scales."""
        rest, own = len(self.schedule) - first, {"temperature": TEMPERATURE, "cfg": GUIDANCE}
        return self.pipeline.settings(
            **{name: [value] * first + [own[name]] * rest for name, value in early.items()}
        )

    def groups(self, captions: int, each: int) -> list[range]:
        """The first captions in groups that are drawn together, with ``each`` so many pictures."""
        size = TOGETHER[each]
        return [range(start, min(start + size, captions)) for start in range(0, captions, size)]

    def made(
        self,
        captions: Sequence[int],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        model: Changed | None = None,
        scales: int | None = STRUCTURE,
        monitor: Monitor | None = None,
        back: int = 0,
    ) -> tuple[Pictures, list[Tensor | None]]:
        """Pictures of captions, all with as many of the seeds in turn, and the codes.

        ``back``: the latent one scale before the end is read as codes again, of which so many scales stay,
        and the rest is drawn anew by the model as it is.
        """
        each = len(seeds) // len(captions)
        conditioning = self.pipeline.encode([self.captions[i] for i in captions for _ in range(each)])
        quantizer = self.pipeline.quantizer
        plan: dict[str, Any] = {"quantizer": quantizer, "device": self.pipeline.device}
        plan["policy"] = None if scales is None else FirstScales(scales - bool(back))
        run = (conditioning, self.schedule, settings)
        transformer = model or self.pipeline.transformer
        found = generate(transformer, *run, noise=Seeds(seeds), monitor=monitor, **plan)
        if back:
            drawn, _ = quantizer.encode(found.f_hat, self.schedule)
            plan |= {"known": drawn[:back], "policy": FirstScales(STRUCTURE)}
            found = generate(self.pipeline.transformer, *run, noise=Seeds(seeds), **plan)
        images = self.pipeline.decode(found.f_hat).numpy()
        return images.reshape(len(captions), each, *images.shape[1:]), found.codes

    def scored(self, captions: Sequence[int], pictures: Pictures) -> list[Diversity]:
        """Of the pictures of each caption."""
        return [
            diversity(self.captions[i], list(images)) for i, images in zip(captions, pictures, strict=True)
        ]


def drawn(lab: Lab) -> list[Diversity]:
    """The scenes that training drew, what a model without any loss of layouts would show."""
    rng, found = np.random.default_rng(5), []
    for caption in lab.captions:
        spec = parse(caption)
        assert spec is not None, "captions are of the grammar"
        found.append(diversity(caption, [render(place(spec, rng)) for _ in range(SHOWN)]))
    return found


def sampled(
    lab: Lab, settings: SamplingSettings, make: Making | None = None, back: int = 0
) -> list[Diversity]:
    """Four pictures of every caption."""
    found = []
    model = make(lab.pipeline.transformer) if make else None
    for group in lab.groups(len(lab.captions), SHOWN):
        seeds = range(SEED + group.start * SHOWN, SEED + group.stop * SHOWN)
        pictures, _ = lab.made(group, seeds, settings, model=model, back=back)
        found += lab.scored(group, pictures)
    return found


def drafts(lab: Lab, group: range, settings: SamplingSettings) -> Drafts:
    """Sixteen drafts of every caption of a group, to the end of the structure stage."""
    seen, quantizer = Watched(), lab.pipeline.quantizer
    assert isinstance(quantizer, BitwiseQuantizer), "the embedded model draws bits"
    seeds = range(SEED + group.start * DRAFTS, SEED + group.stop * DRAFTS)
    pictures, codes = lab.made(group, seeds, settings, monitor=seen)
    likely = torch.zeros(len(seeds))
    for guided, bits in zip(seen.guided, codes, strict=False):
        assert bits is not None, "all of these scales ran"
        probabilities = bit_probabilities(guided.unflatten(-1, (-1, 2)), 0, 0.0)
        of_bits = probabilities.gather(-1, quantizer.to_tokens(bits)[..., None].long())
        likely += of_bits.log().sum((1, 2, 3))
    latents = seen.latents[-1].reshape(len(group), DRAFTS, -1)
    return Drafts(pictures, latents, likely.view(len(group), DRAFTS))


def seeds_of(found: Drafts, place: int) -> list[int]:
    """The first four: what anybody gets who makes four pictures."""
    return list(range(SHOWN))


def different(count: int) -> Picking:
    """The most different ones of the first ``count`` pictures."""
    return lambda found, place: most_different(torch.from_numpy(found.pictures[place][:count]), SHOWN)


def apart(found: Drafts, place: int) -> list[int]:
    """The same by the latents: the first one, then the farthest from all that were chosen."""
    distances = torch.cdist(found.latents[place], found.latents[place])
    picked = [0]
    while len(picked) < SHOWN:
        nearest = distances[:, picked].min(dim=1).values
        picked.append(int(nearest.argmax()))
    return picked


def central(found: Drafts, place: int) -> list[int]:
    """The middles of four clusters of latents, as TTS-VAR (arXiv 2507.18537) keeps them at early scales."""
    distances, picked = torch.cdist(found.latents[place], found.latents[place]), apart(found, place)
    for _ in range(20):
        nearest = distances[:, picked].argmin(dim=1)
        clusters = [torch.nonzero(nearest == index).flatten() for index in range(SHOWN)]
        middles = [int(c[distances[c][:, c].sum(dim=1).argmin()]) for c in clusters]
        if middles == picked:
            break
        picked = middles
    return picked


def likeliest(found: Drafts, place: int) -> list[int]:
    """Those whose bits the model thinks the likeliest, the only reward that needs no other weights."""
    return found.likely[place].topk(SHOWN).indices.tolist()


def picked(
    lab: Lab, settings: SamplingSettings, ways: dict[str, Picking], finished: Sequence[str] = ()
) -> dict[str, list[Diversity]]:
    """Four drafts of each caption, of half of them, picked in several ways.

    ``finished``: ways whose pictures get all scales, too.
    """
    found: dict[str, list[Diversity]] = {}
    for group in lab.groups(len(lab.captions) // 2, DRAFTS):
        made = drafts(lab, group, settings)
        for name, way in ways.items():
            chosen = [way(made, place) for place in range(len(group))]
            pictures = np.stack([made.pictures[place][each] for place, each in enumerate(chosen)])
            found.setdefault(name, []).extend(lab.scored(group, pictures))
            if name in finished:
                whole, _ = lab.made(group, numbered(group, chosen), settings, scales=None)
                found.setdefault(f"{name}, finished", []).extend(lab.scored(group, whole))
    return found


def numbered(group: range, chosen: Sequence[Sequence[int]]) -> list[int]:
    """The seeds of the drafts that were picked of every caption of a group."""
    return [SEED + i * DRAFTS + place for i, each in zip(group, chosen, strict=True) for place in each]
