"""Stage schedules: files of the user's folder, or values set on the node."""

import hashlib
import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..stagevar_core.acceleration.presets import BALANCED
from ..stagevar_core.acceleration.schedule_file import StageSchedule, resolve
from ..stagevar_core.acceleration.schedule_reader import MAX_BYTES
from ..stagevar_core.acceleration.settings import share_at
from ..stagevar_core.acceleration.stages import StageBoundaries
from ..stagevar_core.checks import inside
from ..stagevar_core.plots import schedules as plots
from .host.pictures import stacked, to_image
from .host.schema import CATEGORY, Node, Schema, StageScheduleType, describe
from .host.values import checked

FOLDER = "stagevar_schedules"
FROM_VALUES = "from the values below"
# Area fractions of the fidelity scales of a 1-megapixel schedule: sides 40, 48 and 64 of 64.
AREAS = (0.390625, 0.5625, 1.0)


def register_folder() -> None:
    """Adds ``models/stagevar_schedules`` to the host's folders, beside any that its configuration names."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    places, endings = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (places, {*endings, ".json"})


def choices() -> list[str]:
    """Schedule files that can be chosen."""
    names = folder_paths.get_filename_list(FOLDER)
    return [FROM_VALUES, *sorted((name for name in names if missing(name) is True), key=str.lower)]


def find(name: Any) -> Path:
    """The file of a name; raises ``ValueError`` for names that leave the folder or are not there."""
    places = folder_paths.get_folder_paths(FOLDER)
    for place in places:
        with inside("schedule_file: "):
            path = resolve(place, name)
        if path.is_file():
            return path
    raise ValueError(
        f"schedule_file: {name!r} is not in {', '.join(places)}; expected one of the files there, or "
        f"{FROM_VALUES!r}. The calibrate command makes such files"
    )


def missing(name: Any) -> str | bool:
    """For ``validate_inputs``: True, or why there is no such file."""
    if name is None or name == FROM_VALUES:  # None: linked, known when it runs
        return True
    try:
        find(name)
    except ValueError as error:
        return str(error)
    return True


class Schedule(Node):
    """A schedule file, or values, to STAGE_SCHEDULE and its plot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARStageSchedule",
            display_name="StageVAR Stage Schedule (token budget)",
            category=CATEGORY,
            description="Says where the stages of a generation end and what share of the tokens runs in the "
            "last one, the fidelity stage: from the values here, or from a file that the calibrate command "
            "made. For the schedule input of StageVAR Accelerate; the plot shows it.",
            search_aliases=["StageVAR schedule", "Stage Schedule", "token budget", "stages", "keep"],
            is_output_node=True,
            inputs=[_file_input(), *_value_inputs()],
            outputs=[
                describe(
                    StageScheduleType.Output, display_name="schedule", tooltip="For StageVAR Accelerate."
                ),
                describe(
                    io.Image.Output,
                    display_name="plot",
                    tooltip="Stages and shares over the area of a scale; for a calibrated file its curves, "
                    "too.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, schedule_file: Any = None) -> bool | str:
        """True, or why there is no such file."""
        return missing(schedule_file)

    @classmethod
    def fingerprint_inputs(cls, schedule_file: Any = None, **_: Any) -> str:
        """Changes with what the file holds; the values on the node are compared by the host."""
        if schedule_file in (None, FROM_VALUES) or missing(schedule_file) is not True:
            return ""
        try:
            with find(schedule_file).open("rb") as file:
                return hashlib.sha256(file.read(MAX_BYTES + 1)).hexdigest()
        except OSError:  # said when it runs
            return ""

    @classmethod
    def execute(cls, schedule_file: str = FROM_VALUES, **values: Any) -> io.NodeOutput:
        """The schedule and its plot; raises ``ValueError`` for values or a file that are no schedule."""
        if schedule_file == FROM_VALUES:
            given = checked(_value_inputs(), values)
            shares = (given["keep_first"], given["keep_middle"], given["keep_last"])
            boundaries = StageBoundaries(given["semantic_end"], given["structure_end"])
            schedule = StageSchedule(boundaries=boundaries, keep=tuple(zip(AREAS, shares, strict=True)))
        else:
            schedule = StageSchedule.load(find(schedule_file))
        drawn = [plots.preview(schedule)]
        if schedule.measured:
            drawn.append(plots.curves(schedule))
        plot = to_image(stacked(drawn))
        return io.NodeOutput(schedule, plot, ui=ui.PreviewImage(plot, cls=cls))


def _file_input() -> io.Input:
    return describe(
        io.Combo.Input,
        "schedule_file",
        optional=True,
        options=choices(),
        default=FROM_VALUES,
        tooltip=f"A JSON file of models/{FOLDER}; the values below then have no effect. "
        "python -m stagevar_core calibrate makes such files.",
    )


def _value_inputs() -> list[io.Input]:
    fraction = {"optional": True, "min": 0.0, "max": 1.0, "step": 0.0025, "round": 0.00001}
    share = {"optional": True, "min": 0.0, "max": 1.0, "step": 0.05, "round": 0.0001}
    first, middle, last = (share_at(BALANCED.settings.tokens.keep, area, 0.5) for area in AREAS)
    area = "Area of a scale, as a fraction of the final grid (0 to 1), up to which"
    runs = "Share of the tokens that run, 0 to 1, at scales of"
    between = "Between these points it changes evenly. Work falls about in step with it; 0 skips a scale."
    return [
        describe(
            io.Float.Input,
            "semantic_end",
            default=StageBoundaries.semantic_end,
            tooltip=f"{area} a scale belongs to the semantic stage. For the plot and the report alone: all "
            "tokens run, as in the next stage.",
            **fraction,
        ),
        describe(
            io.Float.Input,
            "structure_end",
            default=StageBoundaries.structure_end,
            tooltip=f"{area} a scale belongs to the structure stage, where all tokens run. Larger scales "
            "belong to the fidelity stage, where the shares below hold. Not below semantic_end.",
            **fraction,
        ),
        describe(
            io.Float.Input,
            "keep_first",
            default=first,
            tooltip=f"{runs} 39% of the final area (side 40 of 64) and less. {between}",
            **share,
        ),
        describe(
            io.Float.Input,
            "keep_middle",
            default=middle,
            tooltip=f"{runs} 56% of the final area (side 48 of 64). {between}",
            **share,
        ),
        describe(
            io.Float.Input,
            "keep_last",
            default=last,
            tooltip=f"{runs} the final area, the most expensive. {between}",
            **share,
        ),
    ]
