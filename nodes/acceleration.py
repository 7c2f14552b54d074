"""The node that makes a model cheaper to sample."""

from typing import Any

from comfy_api.latest import io

from ..stagevar_core.acceleration.presets import DEFAULT, OFF, PRESETS, adjusted
from ..stagevar_core.acceleration.reduction import RESTORATIONS
from ..stagevar_core.acceleration.schedule_file import StageSchedule, identity
from ..stagevar_core.acceleration.settings import GUIDANCE, TOKENS
from .host import sockets
from .host.attached import Patcher, attach
from .host.schema import CATEGORY, Schema, StageScheduleType, VarModel, describe
from .host.values import CheckedNode, OwnNumber, checked

AS_PRESET = "as in the preset"


class Accelerate(CheckedNode):
    """VAR_MODEL to the same model with an acceleration policy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARAccelerate",
            display_name="StageVAR Accelerate (faster)",
            category=CATEGORY,
            description="Makes sampling cheaper: the coarse scales, which decide what the picture shows, run "
            "as they are; the large ones after them, which cost most, run on less. Put it between Load "
            "StageVAR Model and StageVAR Sampler, which then shows what was saved. off changes nothing.",
            search_aliases=[
                *("StageVAR", "FastVAR", "SkipVAR", "SparseVAR"),
                *("speed up", "acceleration", "accelerator", "fast", "faster", "turbo"),
            ],
            inputs=_inputs(),
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
    def execute(
        cls,
        model: Patcher,
        preset: str = DEFAULT,
        schedule: StageSchedule | None = None,
        **changes: Any,
    ) -> io.NodeOutput:
        """The model with the preset's policy, ``changes`` being the other inputs.

        Raises ``ValueError`` naming the input that cannot be used.
        """
        chosen = checked(_inputs(), {"preset": preset, **changes})
        sockets.model("model", model)
        policy = PRESETS[chosen.pop("preset")]
        overrides = {name: value for name, value in chosen.items() if value not in (None, AS_PRESET)}
        if policy is OFF:  # whatever the other inputs say: this is how one compares
            ignored = [*(["schedule"] if schedule is not None else []), *overrides]
            said = {"text": [f"off: {', '.join(ignored)} not used"]} if ignored else {}
            return io.NodeOutput(attach(model, OFF), ui=said)
        if schedule is not None:
            sockets.schedule("schedule", schedule).check(
                identity(model.model.family, model.model.config.to_dict())
            )
            policy = schedule.apply(policy)
        if "skip_scales" in overrides:
            overrides["skip"] = overrides.pop("skip_scales")
        return io.NodeOutput(attach(model, adjusted(policy, overrides) if overrides else policy))


def _inputs() -> list[io.Input]:
    return [*_preset_inputs(), *_work_inputs(), *_result_inputs()]


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
            optional=True,
            options=list(PRESETS),
            default=DEFAULT,
            tooltip="off: nothing is left out. quality: all tokens, but one guidance branch after the "
            "structure stage. balanced: fewer of the last tokens, too. fast, turbo: fewer still, which costs "
            "detail. For VAR, STAR, HART and Switti these four keep both branches to the end and leave out "
            "the last tokens or scales instead; the model tells. auto: as balanced of Infinity, with stages "
            "found for every picture. paper, paper-released, fastvar, "
            "skipvar, sparsevar, faster-hart: published methods, for comparison. The help page has the "
            "counted work of each.",
        ),
    ]


def _among(known: tuple[str, ...]) -> dict[str, Any]:
    """Options of an input that is one of ``known`` or as in the preset."""
    return {"options": [AS_PRESET, *known], "default": AS_PRESET, "optional": True, "advanced": True}


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
        OwnNumber(
            "keep",
            high=1.0,
            advanced=True,
            tooltip="Share of the tokens that run at every scale after the structure stage, 0 to 1; auto: as "
            "in the preset. Work falls about in step with it. Only with tokens gather or projection.",
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
        OwnNumber(
            "code_weight",
            high=1.0,
            advanced=True,
            tooltip="Share of its code that a token adds to the image although it did not run, 0 to 1; auto: "
            "as in the preset. 1 is what StageVAR does, 0 adds nothing there. It costs nothing.",
        ),
        OwnNumber(
            "structure_end",
            high=1.0,
            advanced=True,
            tooltip="Area, as a fraction of the final grid, up to which all tokens of every scale run, 0 to "
            "1; auto: as in the preset (0.25 in most). Lower saves more and changes more than detail.",
        ),
        OwnNumber(
            "skip_scales",
            high=8,
            whole=True,
            advanced=True,
            tooltip="Last scales that do not run at all, 0 to 8; auto: as in the preset. One scale after the "
            "structure stage always runs. Skipping loses fine detail.",
        ),
    ]
