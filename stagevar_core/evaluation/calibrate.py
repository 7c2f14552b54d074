"""Calibration: what the scales of a model need and when its pictures settle, measured on dense runs.

Per scale and chunk of blocks the rank of the chunk's input; per scale how far latent, bits and decoded image
are from the final ones, how often guidance changes a code, and how undecided the codes are. Nothing in the
model is touched: a policy that reduces nothing watches the run.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..acceleration.policy import DensePolicyRun, RunInfo, ScalePlan, Seen
from ..acceleration.schedule_file import StageSchedule, identity
from ..acceleration.schedule_reader import CURVES, Identity, Measured
from ..acceleration.staged import chunks
from ..acceleration.stages import StageBoundaries
from ..checks import refuse, whole
from ..network.tokens import Site, TokenMap
from ..pipeline import Pipeline
from ..rendering.engines import Engine, ask, working
from ..rendering.work import Load, in_order
from ..sampling.settings import SamplingSettings
from ..schedule import Scale, ScaleSchedule
from . import fingerprint
from .metrics import psnr
from .moments import Moments

SEMANTIC_COSINE, STRUCTURE_COSINE = 2 / 3, 5 / 6  # see find_boundaries
_NO_ENERGY = 1e-10  # relative; what centring leaves of equal tokens in float32


@dataclass(frozen=True)
class Request:
    """What is measured: the share ``alpha`` of the energy, in ``chunks`` of blocks, prompt i at seed + i.

    ``settings`` None are the model's own; ``width`` and ``height`` None its own size.
    """

    alpha: float = 0.96
    chunks: int = 8
    seed: int = 0
    settings: SamplingSettings | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            refuse("alpha", self.alpha, "a share of the energy between 0 and 1")
        whole("chunks", self.chunks, 1, 256, "1 to 256 chunks of blocks")


def energy_rank(x: Tensor, alpha: float) -> int:
    """Fewest directions that hold the share ``alpha`` of the energy of the centred tokens ``x`` (L, C).

    The energies are the eigenvalues of the smaller of the two Gram matrices; tokens that are all equal have
    rank 0.
    """
    wide = x.detach().to(device="cpu" if x.device.type == "mps" else x.device, dtype=torch.float64)
    centred = wide - wide.mean(dim=0)
    gram = centred @ centred.mT if len(centred) < centred.shape[1] else centred.mT @ centred
    if gram.trace() <= _NO_ENERGY * wide.square().sum():
        return 0
    energies = torch.linalg.eigvalsh(gram).clamp_min(0.0).flip(0).cumsum(0)
    return min(len(energies), int((energies < alpha * energies[-1]).sum()) + 1)


@dataclass
class _Found:
    """What one run showed, scale after scale."""

    ranks: list[list[int]] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    disagreement: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)


class _Watch:
    """A token reduction that runs all tokens and measures the input of every chunk, conditional row."""

    def __init__(self, spans: tuple[range, ...], alpha: float, ranks: list[int]) -> None:
        self.spans, self._alpha, self._ranks = spans, alpha, ranks

    def reduce(self, x: Tensor, site: Site) -> None:
        self._ranks.append(energy_rank(x[0], self._alpha))

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        return y

    def code_weights(self) -> None:
        return None


@dataclass(frozen=True)
class _Probe:
    """The policy of one dense run that writes down what it sees."""

    request: Request
    found: _Found
    name = "calibration"
    per_image = False

    def start(self, info: RunInfo) -> "_ProbeRun":
        return _ProbeRun(info, self.request, self.found)


class _ProbeRun(DensePolicyRun):
    def __init__(self, info: RunInfo, request: Request, found: _Found) -> None:
        super().__init__(info)
        self.request, self.found = request, found
        self.spans = chunks(info.depth, request.chunks)

    def plan(self, scale: Scale) -> ScalePlan:
        self.found.ranks.append([])
        return ScalePlan(reduction=_Watch(self.spans, self.request.alpha, self.found.ranks[-1]))

    def observe(self, seen: Seen) -> None:
        found = self.found
        found.latents.append(seen.f_hat)
        found.changes.append(float(seen.change.norm() / seen.f_hat.norm()))
        found.entropy.append(float(seen.entropy(seen.guided).mean()))
        disagreement = math.nan
        if seen.scale.index < self.info.guides:
            conditional, unconditional = seen.choices(seen.raw).chunk(2)
            disagreement = float((conditional != unconditional).float().mean())
        found.disagreement.append(disagreement)


def measure(pipeline: Pipeline, prompt: str, seed: int, request: Request) -> dict[str, np.ndarray]:
    """The curves of one picture, (scales,) or (scales, chunks); NaN where there is nothing to measure."""
    found = _Found()
    pictures = pipeline(
        prompt,
        seed=seed,
        width=request.width,
        height=request.height,
        settings=request.settings,
        policy=_Probe(request, found),
    )
    final = found.latents[-1]
    # A first scale that the text before it has run already has none of its own.
    spans = max(map(len, found.ranks))
    ranks = np.array([row or [math.nan] * spans for row in found.ranks], float)
    tokens = np.array([[scale.tokens] for scale in pictures.schedule], float)
    ranks[tokens[:, 0] == 1] = math.nan  # one token has no rank beyond its mean
    earlier = [float(psnr(pipeline.decode(latent), pictures.images)) for latent in found.latents[:-1]]
    same_bits = [float(((latent > 0) == (final > 0)).float().mean()) for latent in found.latents]
    return {
        "rank": ranks,
        "rank_of_tokens": ranks / tokens,
        "rank_of_width": ranks / pipeline.transformer.config.width,
        "latent_cosine": np.array([_cosine(latent, final) for latent in found.latents]),
        "latent_distance": np.array([float((f - final).norm() / final.norm()) for f in found.latents]),
        "latent_change": np.array(found.changes),
        "bit_agreement": np.array(same_bits if pipeline.quantizer.signs else [math.nan] * len(same_bits)),
        "image_psnr": np.array([*earlier, math.nan]),
        "disagreement": np.array(found.disagreement),
        "entropy": np.array(found.entropy),
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def find_boundaries(cosines: Sequence[float], areas: Sequence[float]) -> StageBoundaries:
    """Stages from the mean cosine of every scale's accumulated latent with the final one.

    The semantic stage ends with the first scale at 2/3, the structure stage with the first one at 5/6, as
    area fractions; the last scale always belongs to the fidelity stage. The limits are those with which the
    embedded model has the paper's boundaries of 1/16 and 1/4.
    """
    if len(areas) < 2:
        return StageBoundaries(0.0, 0.0)

    def first(limit: float) -> float:
        reached = [area for cosine, area in zip(cosines, areas, strict=True) if cosine >= limit]
        return min([*reached, areas[-2]])

    semantic = first(SEMANTIC_COSINE)
    return StageBoundaries(min(semantic, 1.0), min(max(semantic, first(STRUCTURE_COSINE)), 1.0))


@dataclass(frozen=True)
class About:
    """What the models of a worker make of a request.

    ``model``: its identity in schedule files. ``width``: of its blocks. ``identity``: what must be the same
    for two parts of a measurement to belong together.
    """

    model: Identity
    width: int
    grids: ScaleSchedule
    identity: dict[str, Any]


@dataclass(frozen=True)
class Measuring:
    """The task of measuring one prompt after the other, by their numbers."""

    prompts: Sequence[str]
    request: Request

    def begin(self, load: Load) -> Callable[[int], dict[str, np.ndarray]]:
        """What measures the prompt with a number."""
        pipeline, request = load(), self.request
        return lambda index: measure(pipeline, self.prompts[index], request.seed + index, request)

    def about(self, pipeline: Pipeline) -> About:
        """What loaded models make of it, nothing drawn yet."""
        network, settings = pipeline.transformer, self.request.settings or pipeline.settings()
        encoder, grids = pipeline.text_encoder, pipeline.schedule(self.request.width, self.request.height)
        model = identity(network.family, network.config.to_dict())
        values = {
            "model": model,
            "weights": fingerprint.weights(network, pipeline.tokenizer, encoder and encoder.model),
            "code": fingerprint.code(),
            "prompts": fingerprint.digest("\n".join(self.prompts)),
            "alpha": self.request.alpha,
            "chunks": self.request.chunks,
            "seed": self.request.seed,
            "schedule": grids.grids,
            "settings": asdict(settings),
        }
        return About(model, network.config.width, grids, json.loads(json.dumps(values)))


class Calibration:
    """A measurement over prompts that can be left and taken up again.

    ``about``: what the models were asked already.
    """

    def __init__(
        self, by: Engine | Pipeline, prompts: Sequence[str], request: Request, about: About | None = None
    ) -> None:
        if not prompts:
            raise ValueError("there are no prompts; expected one or more")
        self.engine, self.task, self.prompts = working(by), Measuring(list(prompts), request), list(prompts)
        self.about = about or ask(self.engine, self.task.about)
        self.moments = {name: Moments() for name in CURVES}
        self.done = 0

    def run(self) -> Iterator[None]:
        """Measure the prompts that are left; what has been done can be saved after each."""
        left = range(self.done, len(self.prompts))
        for one in in_order(self.engine.run(self.task, left)):
            self.add(one.result)
            yield

    def add(self, curves: Mapping[str, np.ndarray]) -> None:
        """Count the next prompt: the sums round by their order, which is always that of the prompts."""
        for name, values in curves.items():
            self.moments[name].add(values)
        self.done += 1

    def schedule(self) -> StageSchedule:
        """The schedule that the measured prompts ask for.

        Budgets are the mean ranks relative to tokens, at every scale of more than one token.
        """
        curves = {name: moments.curve() for name, moments in self.moments.items()}
        about, request, grids = self.about, self.task.request, self.about.grids
        areas = [grids.area_fraction(scale) for scale in grids]
        shares = curves["rank_of_tokens"]["mean"]
        keep = [
            (area, tuple(min(1.0, round(share, 4)) for share in row))
            for area, row in zip(areas, shares, strict=True)
            if row[0] is not None
        ]
        measured: Measured = {
            "alpha": request.alpha,
            "chunks": len(shares[0]),
            "prompts": self.done,
            "seed": request.seed,
            "width": about.width,
            "schedule": [list(grid) for grid in grids.grids],
            "curves": curves,
        }
        return StageSchedule(
            model=about.model,
            boundaries=find_boundaries(curves["latent_cosine"]["mean"], areas),
            keep=tuple(keep) or None,
            measured=measured,
        )

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs, as plain values for JSON."""
        moments = {name: value.state() for name, value in self.moments.items()}
        return {"request": self.about.identity, "done": self.done, "moments": moments}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ``ValueError`` when it belongs to another measurement."""
        try:
            request, done = dict(state["request"]), state["done"]
            moments = {name: Moments() for name in CURVES}
            for name, value in moments.items():
                value.restore(state["moments"][name])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"cannot be read ({error}); delete it to start over") from None
        for key, value in self.about.identity.items():
            if request.get(key) != value:
                raise ValueError(f"was begun with {key} {request.get(key)!r}; this call has {value!r}")
        if type(done) is not int or not 0 <= done <= len(self.prompts):
            raise ValueError(f"says that {done!r} of {len(self.prompts)} prompts are done; delete it")
        self.moments, self.done = moments, done
