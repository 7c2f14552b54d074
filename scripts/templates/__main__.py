"""Writes all workflows, in both forms; their pictures stay as they are."""

from .graph import ROOT
from .workflows import every

for graph in every():
    graph.write(ROOT / "workflows")
    print(graph.name)
