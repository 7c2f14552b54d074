"""The node that shows what a run did."""

import json

from comfy_api.latest import io, ui

from ..stagevar_core.plots.timeline import timeline
from .host import sockets
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
    def execute(cls, report: sockets.Report) -> io.NodeOutput:
        """The plot (1, height, width, 3) in 0..1, which the node shows, and the numbers as text.

        The node's script shows the other plot, under ``dark``, where the page is dark.
        """
        report = sockets.report("report", report)
        plot, dark = (to_image(timeline(report, dark=dark)) for dark in (False, True))
        shown, instead = (ui.PreviewImage(image, cls=cls).as_dict() for image in (plot, dark))
        return io.NodeOutput(plot, json.dumps(report, indent=1), ui={**shown, "dark": instead["images"]})
