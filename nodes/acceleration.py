"""The node that makes a model cheaper to sample."""

from typing import Any

from comfy_api.latest import io

from ..stagevar_core.acceleration.presets import DEFAULT, OFF, PRESETS, adjusted
from ..stagevar_core.acceleration.reduction import RESTORATIONS
from ..stagevar_core.acceleration.schedule_file import StageSchedule, identity
from ..stagevar_core.acceleration.settings import GUIDANCE, TOKENS
from .host.attached import Patcher, attach
from .host.schema import CATEGORY, Node, StageScheduleType, VarModel, describe

AS_PRESET = "as in the preset"
_UNSET = -1.0  # of number inputs: as in the preset
_SHARE = {"default": _UNSET, "min": _UNSET, "max": 1.0, "step": 0.05, "round": 0.0001, "advanced": True}


class Accelerate(Node):
    """VAR_MODEL to the same model with an acceleration policy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return describe(
            io.Schema,
            node_id="StageVARAccelerate",
            display_name="StageVAR Accelerate",
            category=CATEGORY,
            description="Makes sampling cheaper: the coarse scales, which decide what the picture shows, run "
            "as they are; the large ones after them, which cost most, run on less. Put it between Load "
            "StageVAR Model and StageVAR Sampler, which then shows what was saved. off changes nothing.",
            search_aliases=[
                "StageVAR",
                "FastVAR",
                "SkipVAR",
                "SparseVAR",
                "speed up",
                "acceleration",
                "fast",
            ],
            inputs=[*_preset_inputs(), *_work_inputs(), *_result_inputs()],
            outputs=[
                describe(
                    VarModel.Output,
                    display_name="var_model",
                    tooltip="For StageVAR Sampler. The model that came in is not changed: other samplers may "
                    "use it with other settings at the same time.",
                )
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913 (the host passes inputs by name)
        cls,
        model: Patcher,
        preset: str = DEFAULT,
        guidance: str = AS_PRESET,
        tokens: str = AS_PRESET,
        keep: float = _UNSET,
        restoration: str = AS_PRESET,
        code_weight: float = _UNSET,
        structure_end: float = _UNSET,
        skip_scales: int = int(_UNSET),
        schedule: StageSchedule | None = None,
    ) -> io.NodeOutput:
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {list(PRESETS)}")
        policy = PRESETS[preset]
        if policy is OFF:  # whatever the other inputs say: this is how one compares
            return io.NodeOutput(attach(model, OFF))
        if schedule is not None:
            schedule.check(identity(model.model.family, model.model.config.to_dict()))
            policy = schedule.apply(policy)
        texts = {"guidance": guidance, "tokens": tokens, "restoration": restoration}
        numbers = {
            "keep": keep,
            "code_weight": code_weight,
            "structure_end": structure_end,
            "skip": skip_scales,
        }
        overrides = {name: value for name, value in texts.items() if value != AS_PRESET}
        overrides |= {name: value for name, value in numbers.items() if value >= 0}
        return io.NodeOutput(attach(model, adjusted(policy, overrides) if overrides else policy))


def _preset_inputs() -> list[io.Input]:
    return [
        describe(VarModel.Input, "model", tooltip="From Load StageVAR Model."),
        describe(
            StageScheduleType.Input,
            "schedule",
            optional=True,
            tooltip="From Stage Schedule: where the stages end and how many tokens run, in place of the "
            "preset's. Presets with rules of their own (auto, fastvar, skipvar, sparsevar) take none.",
        ),
        describe(
            io.Combo.Input,
            "preset",
            options=list(PRESETS),
            default=DEFAULT,
            tooltip="off: nothing is left out. quality: all tokens, but one guidance branch after the "
            "structure stage. balanced: fewer of the last tokens, too. fast, turbo: fewer still, which costs "
            "detail. auto: as balanced, with stages found for every picture. paper, paper-released, fastvar, "
            "skipvar, sparsevar: published methods, for comparison. The help page has the counted work of "
            "each.",
        ),
    ]


def _among(known: tuple[str, ...]) -> dict[str, Any]:
    """Options of an input that is one of ``known`` or as in the preset."""
    return {"options": [AS_PRESET, *known], "default": AS_PRESET, "advanced": True}


def _work_inputs() -> list[io.Input]:
    """How much runs after the structure stage, where it is not as in the preset."""
    return [
        describe(
            io.Combo.Input,
            "guidance",
            tooltip="Branches that run after the structure stage. both: as without acceleration, twice the "
            "work. conditional: the prompt alone. unconditional: the null text alone. reuse: the prompt, "
            "with a share of the last guidance that shrinks from scale to scale. One branch also frees half "
            "of the keys and values.",
            **_among(GUIDANCE),
        ),
        describe(
            io.Combo.Input,
            "tokens",
            tooltip="Tokens that run after the structure stage. dense: all. gather: the share keep, those "
            "that matter most. projection: as many random mixtures of all tokens, as StageVAR has it.",
            **_among(TOKENS),
        ),
        describe(
            io.Float.Input,
            "keep",
            tooltip="Share of the tokens that run at every scale after the structure stage, 0 to 1; -1: as "
            "in the preset. Work falls about in step with it. Only with tokens gather or projection.",
            **_SHARE,
        ),
    ]


def _result_inputs() -> list[io.Input]:
    """What happens to tokens and scales that do not run, where it is not as in the preset."""
    return [
        describe(
            io.Combo.Input,
            "restoration",
            tooltip="What the tokens get that did not run. delta: the change they had at the scale before. "
            "state: their state of the scale before. anchor: the change of the nearest token that ran.",
            **_among(RESTORATIONS),
        ),
        describe(
            io.Float.Input,
            "code_weight",
            tooltip="Share of its code that a token adds to the image although it did not run, 0 to 1; -1: "
            "as in the preset. 1 is what StageVAR does, 0 adds nothing there. It costs nothing.",
            **_SHARE,
        ),
        describe(
            io.Float.Input,
            "structure_end",
            tooltip="Area, as a fraction of the final grid, up to which all tokens of every scale run, 0 to "
            "1; -1: as in the preset (0.25 in most). Lower saves more and changes more than detail.",
            **_SHARE,
        ),
        describe(
            io.Int.Input,
            "skip_scales",
            default=int(_UNSET),
            min=int(_UNSET),
            max=8,
            advanced=True,
            tooltip="Last scales that do not run at all, 0 to 8; -1: as in the preset. One scale after the "
            "structure stage always runs. Skipping loses fine detail.",
        ),
    ]
