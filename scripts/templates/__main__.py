"""Writes all workflows, in both forms, and the blueprint; their pictures stay as they are."""

from . import blueprint
from .graph import ROOT
from .workflows import every

for graph in every():
    graph.write(ROOT / "workflows")
    print(graph.name)
print(blueprint.write(ROOT / "subgraphs").stem)
