"""The node that shows what a run did."""

import json
from typing import Any

from comfy_api.latest import io, ui

from ..stagevar_core.plots.timeline import timeline
from .host.pictures import to_image
from .host.schema import CATEGORY, Node, Schema, StageReportType, describe


class Report(Node):
    """STAGE_REPORT to a plot and JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARStageReport",
            display_name="StageVAR Stage Report (work and time)",
            category=CATEGORY,
            description="Shows what a run of StageVAR Sampler did at every scale: work counted in FLOPs "
            "against the run without acceleration, milliseconds, and tokens that were computed.",
            search_aliases=["StageVAR report", "timeline", "FLOPs", "benchmark"],
            is_output_node=True,
            inputs=[
                describe(
                    StageReportType.Input,
                    "report",
                    tooltip="The second output of StageVAR Sampler. Times are those of this run on this "
                    "machine; FLOPs are counted and the same everywhere.",
                )
            ],
            outputs=[
                describe(io.Image.Output, display_name="plot", tooltip="The timeline, for Save Image."),
                describe(
                    io.String.Output,
                    display_name="json",
                    tooltip="All numbers as JSON: totals, and per scale tokens, rows, FLOPs, milliseconds "
                    "and bytes of keys and values.",
                ),
            ],
        )

    @classmethod
    def execute(cls, report: dict[str, Any]) -> io.NodeOutput:
        """The plot (1, height, width, 3) in 0..1 and the numbers as text, both shown on the node."""
        plot = to_image(timeline(report))
        text = json.dumps(report, indent=1)
        return io.NodeOutput(plot, text, ui=ui.PreviewImage(plot, cls=cls))
