"""The experiments that the presets rest on, on the embedded models: one JSON and one Markdown table for each.

    python scripts/experiments.py                    all of them, 300 prompts
    python scripts/experiments.py --only a,d         some of them
    python scripts/experiments.py --prompts 20       a quick look
    python scripts/experiments.py --model artwork    what is asked of the artwork model, 150 classes

Experiments a to e start from the plain design, a quarter of the tokens at every fidelity scale; f starts from
`balanced`, which is what a to e led to; h asks both models, and what `balanced` is on the artwork model came
of it; i starts from `fast`. Where a change would also change the amount of work, the share of tokens is set
so that the counted FLOPs are equal again. Results so far are kept in --out, the same command continues there.
The prompts are not those of `compare`: settings are chosen on these and judged on those. The tables in
docs/experiments.md are replaced, the text around them stays.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cheaper import MASSES, ByDisagreement, ByMass, Entropies  # noqa: E402

from stagevar_core.acceleration.changes import changed  # noqa: E402
from stagevar_core.acceleration.policy import AccelerationPolicy, DensePolicy, FirstScales  # noqa: E402
from stagevar_core.acceleration.presets import BALANCED, FAST, PRESETS  # noqa: E402
from stagevar_core.acceleration.scores import SCORES  # noqa: E402
from stagevar_core.acceleration.settings import Guidance, StageSettings, Tokens, share_at  # noqa: E402
from stagevar_core.acceleration.staged import StagedPolicy  # noqa: E402
from stagevar_core.commands.compare import footer, measure  # noqa: E402
from stagevar_core.devices import hardware  # noqa: E402
from stagevar_core.embedded import MODELS  # noqa: E402
from stagevar_core.evaluation import report as compare_report  # noqa: E402
from stagevar_core.evaluation import tables as compare_tables  # noqa: E402
from stagevar_core.evaluation.compare import Job  # noqa: E402
from stagevar_core.evaluation.score import held_out  # noqa: E402
from stagevar_core.pipeline import Pipeline  # noqa: E402
from stagevar_core.sampling.generate import generate  # noqa: E402
from stagevar_core.sampling.noise import SeededNoise  # noqa: E402
from stagevar_core.schedule import Scale  # noqa: E402

BASE = "a quarter"
CORRECTED = "balanced of Infinity"  # for models that were trained to correct themselves, on any model
SCENES, ARTWORK = MODELS
PICTURES, BATCHES = {SCENES: 300, ARTWORK: 150}, {SCENES: 20, ARTWORK: 7}
RATIO = 3.25  # by which h's variants cost less than `off`; what `balanced` saves on the scenes model
QUARTER = StageSettings(
    guidance=Guidance("reuse"), tokens=Tokens("gather", keep=0.25, score="change", code_weight=0.0)
)
SEED = 1000
TOLERANCE = 0.005  # relative difference in FLOPs that counts as equal
Variants = dict[str, AccelerationPolicy]


class Lab:
    """A model, the plain design and its fidelity scales, and budgets of equal work."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.schedule = pipeline, pipeline.schedule()
        self.base = QUARTER
        stage = self.base.boundaries.stage
        self.fidelity = [scale for scale in self.schedule if stage(self.schedule, scale) == "fidelity"]
        self._text = pipeline.encode(pipeline.measurable(["a red circle"], made_up=True))

    def share(self, scale: Scale) -> float:
        """The share of tokens that the plain design keeps at a scale."""
        return share_at(self.base.tokens.keep, self.schedule.area_fraction(scale), 0.5)

    def shares(self, first: Any, last: Any) -> tuple:
        """``keep`` with these shares at the two fidelity scales."""
        areas = [self.schedule.area_fraction(scale) for scale in self.fidelity]
        return ((areas[0], first), (areas[1], last))

    def flops(self, settings: StageSettings | None) -> float:
        """Counted transformer FLOPs of one picture, for None of `off`; nothing that is drawn changes them."""
        generation = generate(
            self.pipeline.transformer,
            self._text,
            self.schedule,
            self.pipeline.settings(),
            noise=SeededNoise(0, 1),
            quantizer=self.pipeline.quantizer,
            policy=DensePolicy() if settings is None else StagedPolicy("probe", settings),
            device=self.pipeline.device,
        )
        return generation.trace.flops

    def equal(
        self, make: Callable[[float], StageSettings], target: StageSettings | None = None
    ) -> StageSettings:
        """``make(share)`` with the share that costs as much as ``target``, the plain design where None.

        Raises ``ValueError`` when no share from 0 to 1 comes near.
        """
        wanted = self.flops(target or self.base)
        low, high = self.between(make, wanted)
        best = min((make(low), make(high)), key=lambda settings: abs(self.flops(settings) - wanted))
        if abs(self.flops(best) / wanted - 1.0) > 4 * TOLERANCE:
            raise ValueError(f"no share of tokens costs {wanted:.4g} FLOPs; nearest {self.flops(best):.4g}")
        return best

    def between(self, make: Callable[[float], StageSettings], wanted: float) -> tuple[float, float]:
        """The shares next to each other below and above so many FLOPs."""
        low, high = 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (middle, high) if self.flops(make(middle)) < wanted else (low, middle)
        return low, high

    def at_most(self, make: Callable[[float], StageSettings], ratio: float = RATIO) -> StageSettings:
        """``make(share)`` with the largest share, 1 at most, that costs ``ratio`` times less than `off`."""
        wanted = self.flops(None) / ratio
        return make(1.0) if self.flops(make(1.0)) <= wanted else make(self.between(make, wanted)[0])

    def equalled(self, settings: StageSettings, target: StageSettings | None = None) -> StageSettings:
        """The same settings, with all shares scaled alike where they cost more or less than ``target``."""
        if abs(self.flops(settings) / self.flops(target or self.base) - 1.0) <= TOLERANCE:
            return settings
        first, last = (self.share(scale) for scale in self.fidelity)
        top = max(first, last)
        return self.equal(
            lambda x: changed(settings, keep=self.shares(first / top * x, last / top * x)), target
        )


def named(**settings: StageSettings) -> Variants:
    """Settings as policies; an underscore in a name is a space, two are a comma."""
    names = {name: name.replace("__", ", ").replace("_", " ") for name in settings}
    return {names[name]: StagedPolicy(names[name], value) for name, value in settings.items()}


def tokens(lab: Lab) -> Variants:
    """(a) Projection, gather and skip, over the stage and at its first scale alone."""
    base = lab.base
    # As in the paper: all codes count, and what did not run gets the state of the scale before.
    paper = {"tokens": "projection", "restoration": "state", "code_weight": 1.0}
    found = named(
        stage__gather_with_all_codes=changed(base, code_weight=1.0),
        stage__projection_as_in_the_paper=lab.equalled(changed(base, **paper)),
        first_scale_only__gather=changed(base, skip=1),
    )
    return found | {"both scales skipped": FirstScales(lab.fidelity[0].index)}


def guidance(lab: Lab) -> Variants:
    """(b) Which rows run, with all tokens."""
    ways = {name: {"guidance": name} for name in ("conditional", "unconditional")}
    ways |= {f"reuse {decay:g}": {"guidance": "reuse", "reuse": decay} for decay in (0.5, 1.0)}
    dense = changed(lab.base, tokens="dense", keep=1.0)
    return {
        f"all tokens, {name}": StagedPolicy(f"all tokens, {name}", changed(dense, **change))
        for name, change in ways.items()
    }


def restoration(lab: Lab) -> Variants:
    """(c) What the tokens get that did not run, with all their codes; without codes it would not matter.

    The score is the same for all, so that the tokens are.
    """
    return {
        name: StagedPolicy(name, changed(lab.base, restoration=name, score="detail", code_weight=1.0))
        for name in ("delta", "state", "anchor")
    }


def code_weight(lab: Lab) -> Variants:
    """(d) How much the codes of tokens count that did not run."""
    weights = {f"code weight {weight:g}": weight for weight in (0.25, 0.5, 1.0)}
    return {name: StagedPolicy(name, changed(lab.base, code_weight=w)) for name, w in weights.items()}


def budget(lab: Lab) -> Variants:
    """(e) Where the same amount of work goes; with code weight 0 a scale without tokens does not run."""
    base = lab.base

    def last(end: float) -> StageSettings:
        early = changed(base, guidance_end=end)
        return lab.equal(lambda x: changed(early, keep=lab.shares(0.0, x)))

    return named(
        more_at_the_first=lab.equal(lambda x: changed(base, keep=lab.shares(0.4, x))),
        all_at_the_first=lab.equal(lambda x: changed(base, keep=lab.shares(x, 0.0))),
        all_at_the_last=last(1.0),
        all_at_the_last__guidance_until_6x6=last(0.2),
        all_at_the_last__guidance_until_4x4=last(0.1),
    )


def score(lab: Lab) -> Variants:
    """(f) What the tokens are chosen by, in `balanced`, and in `fast` for how evenly."""
    settings = {f"by {name}": changed(BALANCED.settings, score=name, evenness=0.0) for name in SCORES}
    for share in (0.3, 0.6):
        settings[f"by change, evenness {share:g}"] = changed(BALANCED.settings, evenness=share)
    for share in (0.0, 0.6):
        settings[f"fast, by change, evenness {share:g}"] = changed(FAST.settings, evenness=share)
    return {name: StagedPolicy(name, value) for name, value in settings.items()}


def late(lab: Lab) -> Variants:
    """(h) What the last scales get, with a structure stage up to the last two; equal work where it can be."""
    end = lab.schedule.area_fraction(lab.schedule.scales[-3])
    own = changed(BALANCED.settings, structure_end=end, guidance_end=1.0)
    guided = changed(own, guidance="both")

    def last(x: float) -> tuple:
        return ((0.75, 0.0), (0.9, x))

    found = named(
        balanced_of_Infinity__as_much=lab.at_most(lambda x: changed(BALANCED.settings, keep=last(x))),
        guided_until_the_last_two__all_at_the_last=lab.at_most(lambda x: changed(own, keep=last(x))),
        guided_until_the_last_two__the_last_skipped=lab.at_most(lambda x: changed(own, keep=x, skip=1)),
        guided_to_the_end__all_at_the_last=lab.at_most(lambda x: changed(guided, keep=last(x))),
        guided_to_the_end__the_last_skipped=lab.at_most(lambda x: changed(guided, keep=x, skip=1)),
    )
    scales = len(lab.schedule)
    skips = {f"without the last {count}": FirstScales(scales - count) for count in (1, 2)}
    return {**found, "skipvar": PRESETS["skipvar"], "fastvar": PRESETS["fastvar"], **skips}


def cheaper(lab: Lab) -> Variants:
    """(i) What else could be had for `fast`'s FLOPs: the share of the last scale is set for equal work."""
    fast = FAST.settings
    target = lab.flops(None) / lab.flops(fast)

    def equal(before: tuple = (), **changes: object) -> StageSettings:
        own = changed(fast, **changes)
        return lab.at_most(lambda x: changed(own, keep=(*before, (0.75, 0.0), (0.9, x))), target)

    def deep(early: float, late: float) -> StageSettings:
        halves = changed(fast, spans=2)
        return lab.at_most(
            lambda x: changed(halves, keep=((0.75, 0.0), (0.9, (min(1.0, early * x), min(1.0, late * x))))),
            target,
        )

    found = named(
        by_codes=changed(fast, score="codes"),
        by_entropy=changed(fast, score="entropy"),
        guidance_until_4x4=equal(guidance_end=0.1),
        the_8x8_skipped=equal(structure_end=0.15),
        the_8x8_skipped__guidance_until_4x4=equal(structure_end=0.15, guidance_end=0.1),
        other_codes_count_a_half=equal(code_weight=0.5),
        half_of_the_8x8=equal(((0.26, 0.5), (0.3, 0.0)), structure_end=0.15),
        more_tokens_in_early_blocks=deep(1.4, 0.6),
        more_tokens_in_late_blocks=deep(0.6, 1.4),
    )
    name = "by disagreement of the rows"
    return {**found, name: ByDisagreement(name, fast), "a budget for every picture": by_mass(lab, fast)}


def by_mass(lab: Lab, settings: StageSettings) -> ByMass:
    """The mass of entropy whose share of tokens is the preset's on average, of the first of the prompts."""
    captions = [caption for _, caption in held_out(40, SEED)]
    end = lab.fidelity[0].index
    found: list[list[float]] = []
    for index, caption in enumerate(captions):
        entropies = Entropies("entropies", settings)
        lab.pipeline(caption, seed=SEED + index, policy=entropies, until=end)
        found.append(entropies.shares)
    share = share_at(settings.tokens.keep, 1.0, 0.5)
    means = [sum(column) / len(found) for column in zip(*found, strict=True)]
    nearest = min(range(len(means)), key=lambda index: abs(means[index] - share))
    return ByMass("a budget for every picture", settings, MASSES[nearest])


@dataclass(frozen=True)
class Experiment:
    """A question, the variants that answer it, what they are compared with, and the models that it asks."""

    name: str
    question: str
    variants: Callable[[Lab], Variants]
    base: str = BASE
    models: tuple[str, ...] = (SCENES,)


EXPERIMENTS = {
    "a": Experiment("tokens", "Projection, gather or skip", tokens),
    "b": Experiment("guidance", "Which rows run", guidance),
    "c": Experiment("restoration", "What untouched tokens get", restoration),
    "d": Experiment("code_weight", "How much untouched tokens' codes count", code_weight),
    "e": Experiment("budget", "Where the budget goes", budget),
    "f": Experiment("score", "Which tokens run", score),
    "h": Experiment("late", "What the last scales get", late, CORRECTED, (SCENES, ARTWORK)),
    "i": Experiment("cheaper", "What else could be had for the same", cheaper, FAST.name),
}


def stem(key: str, model: str) -> str:
    """Of the files of an experiment on a model."""
    return f"{key}_{EXPERIMENTS[key].name}" + (f"_{model}" if model != SCENES else "")


def run(key: str, model: str, lab: Lab, job: Job, out: Path) -> dict[str, Any]:
    """Measure one experiment on a model; everything as plain values."""
    experiment = EXPERIMENTS[key]
    bases = {BASE: lab.base, CORRECTED: BALANCED.settings, FAST.name: FAST.settings}
    base = StagedPolicy(experiment.base, bases[experiment.base])
    policies: Variants = {experiment.base: base, **experiment.variants(lab)}
    print(f"({key}) {experiment.question}: {len(policies)} variants", file=sys.stderr)
    found = measure(lab.pipeline, policies, job, out / stem(key, model))
    about = {
        "experiment": experiment.question,
        "command": shlex.join(["python", "scripts/experiments.py", *sys.argv[1:]]),
        "dtype": str(lab.pipeline.transformer.compute_dtype).removeprefix("torch."),
        "hardware": hardware(lab.pipeline.device),
    }
    return compare_report.report(found, policies, about, experiment.base)


def tables(values: dict[str, Any], against: str = BASE) -> str:
    """What goes between the markers."""
    parts = (compare_tables.overview(values), compare_tables.differences(values, against), footer(values))
    return "\n\n".join(parts)


def replaced(text: str, key: str, content: str) -> str:
    """A document with the tables of an experiment replaced, or added as a section of its own.

    ``key``: its letter, and for models other than the first their name.
    """
    begin, end = f"<!-- experiment {key} -->", f"<!-- end of experiment {key} -->"
    block = f"{begin}\n\n{content}\n\n{end}"
    if begin in text:
        before, _, rest = text.partition(begin)
        if end not in rest:
            raise ValueError(f"{begin} has no {end} after it; put it back below the tables")
        return before + block + rest.partition(end)[2]
    return f"{text.rstrip()}\n\n## ({key}) {EXPERIMENTS[key[0]].question}\n\n{block}\n"


def main() -> int:
    """Run the chosen experiments, write their files and the tables of the documentation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="A,B,...", help="letters (default: all of the model's)")
    parser.add_argument("--model", choices=MODELS, default=SCENES)
    parser.add_argument("--prompts", type=int, help="pictures of each variant (default: 300, artwork 150)")
    parser.add_argument("--seed", type=int, default=SEED, help="of captions and pictures")
    parser.add_argument("--batch", type=int, help="(default: 20, artwork 7)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "experiments", help="results so far")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "measurements" / "experiments")
    parser.add_argument("--doc", type=Path, default=ROOT / "docs" / "experiments.md")
    arguments = parser.parse_args()
    model = arguments.model
    asked = [key for key, experiment in EXPERIMENTS.items() if model in experiment.models]
    keys = asked if arguments.only is None else [key.strip() for key in arguments.only.split(",")]
    unknown = [key for key in keys if key not in asked]
    if unknown:
        parser.error(f"--only has {unknown[0]!r}; expected any of {','.join(asked)} on {model}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        lab = Lab(Pipeline.embedded(model=model))
        count = arguments.prompts or PICTURES[model]
        captions = [caption for _, caption in held_out(count, arguments.seed)]
        captions = tuple(lab.pipeline.measurable(captions, made_up=True))
        job = Job(captions, 1, arguments.seed, arguments.batch or BATCHES[model])
        for key in keys:
            values = run(key, model, lab, job, arguments.out)
            arguments.json.mkdir(parents=True, exist_ok=True)
            file = arguments.json / f"{stem(key, model)}.json"
            file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            content = tables(values, EXPERIMENTS[key].base)
            print(f"\n({key}) {EXPERIMENTS[key].question}\n\n{content}\n")
            doc = arguments.doc.read_text(encoding="utf-8") if arguments.doc.is_file() else "# Experiments\n"
            arguments.doc.parent.mkdir(parents=True, exist_ok=True)
            arguments.doc.write_text(
                replaced(doc, key if model == SCENES else f"{key} {model}", content), encoding="utf-8"
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
