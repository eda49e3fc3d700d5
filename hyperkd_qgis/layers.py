"""Result files to styled layers: named, in a group, in the order in which one looks at them.

The engine writes the style into the file and beside it, so that any way to open the file looks
right. What is done here is for the layer that arrives in the project after a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from qgis.core import (
    QgsLayerTree,
    QgsLayerTreeGroup,
    QgsMapLayer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)

from .layer_styles import CLASS_POLYGONS, RASTER_STYLES, VALUES, read_quantity, style_class_polygons

_alive: list[LayerFinisher] = []
"""QGIS keeps no reference of the Python half of a post-processor: without one it does nothing."""


@dataclass(frozen=True)
class ResultLook:
    """How one output becomes a layer.

    Args:
        kind: a word of `.layer_styles`: `CLASSES` for a class map, `SHARE` for values from 0 to
            1, `VALUES` for a quantity, `CLASS_POLYGONS` for the polygons of a class map, `CUBE`
            for a scene in its own colours, `RESIDUAL` for what is not given back, where 0 is best.
        title: what the layer shows; the scene's name is added. A quantity has its own name, which
            stands in the file.
        rank: 0 lies on top.
        legend: output that is the class map of polygons, and has their names and colours.
    """

    kind: str
    title: str
    rank: int = 0
    legend: str = ""


class LayerFinisher(QgsProcessingLayerPostProcessorInterface):
    """Styles one layer and puts it into its group, when QGIS has loaded it.

    Args:
        look: how the layer is to look.
        group_name: of the layer tree.
        legend_path: of the class map that polygons were made of.
    """

    def __init__(self, look: ResultLook, group_name: str, legend_path: str = "") -> None:
        super().__init__()
        self._look = look
        self._group_name = group_name
        self._legend_path = legend_path
        _alive.append(self)

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Style the layer; called by QGIS in the main thread."""
        if layer.isValid():
            self._style(layer)
            layer.triggerRepaint()
        if not _tells_group_by_itself():
            move_to_group(layer, self._group_name, self._look.rank)
        if self in _alive:
            _alive.remove(self)

    def _style(self, layer: QgsMapLayer) -> None:
        if isinstance(layer, QgsRasterLayer):
            RASTER_STYLES[self._look.kind](layer)
        elif isinstance(layer, QgsVectorLayer) and self._look.kind == CLASS_POLYGONS:
            style_class_polygons(layer, self._legend_path)


def finish_when_loaded(
    context: QgsProcessingContext,
    path: str,
    look: ResultLook,
    default_name: str,
    scene_name: str,
    legend_path: str = "",
) -> None:
    """Arrange that an output which QGIS will load arrives named, styled and in a group.

    Args:
        context: of the run.
        path: of the output.
        look: how it is to look.
        default_name: QGIS's name for it; another one was chosen by the user and stays.
        scene_name: of the input layer.
        legend_path: of the class map that polygons were made of.
    """
    if not path or not context.willLoadLayerOnCompletion(path):
        return
    details = context.layerToLoadOnCompletionDetails(path)
    group_name = f"HyperKD: {scene_name}" if scene_name else "HyperKD"
    if details.name in ("", default_name):
        title = (read_quantity(path).title if look.kind == VALUES else "") or look.title
        details.name = f"{title} of {scene_name}" if scene_name else title
    if _tells_group_by_itself():
        details.groupName = group_name
        if hasattr(details, "layerSortKey"):
            details.layerSortKey = look.rank
    details.setPostProcessor(LayerFinisher(look, group_name, legend_path))
    context.addLayerToLoadOnCompletion(path, details)


def forget_finishers() -> None:
    """Let go of what waits for layers that never came; for the end of the plugin."""
    _alive.clear()


def move_to_group(layer: QgsMapLayer, group_name: str, rank: int) -> None:
    """Move a layer of the project into a group beside it; nothing happens outside a project."""
    project = layer.project() or QgsProject.instance()
    node = project.layerTreeRoot().findLayer(layer.id())
    if node is None:
        return
    parent = node.parent()
    # QGIS puts a new layer beside the one that is chosen, which may be in the group already
    is_inside = QgsLayerTree.isGroup(parent) and parent.name() == group_name
    group = parent if is_inside else _child_group(parent, group_name)
    if group is None:
        group = parent.insertGroup(0, group_name)
    copy = node.clone()
    copy.setCustomProperty("hyperkd/rank", rank)
    # in this order: a layer that the tree has nowhere is dropped from the project
    group.insertChildNode(_position(group, rank), copy)
    parent.removeChildNode(node)


def _position(group: QgsLayerTreeGroup, rank: int) -> int:
    """Find the place of a rank; of two runs into one group, the newer lies on top."""
    for position, child in enumerate(group.children()):
        its_rank = child.customProperty("hyperkd/rank")
        if its_rank is not None and int(its_rank) >= rank:
            return position
    return len(group.children())


def _child_group(parent: QgsLayerTreeGroup, name: str) -> QgsLayerTreeGroup | None:
    for child in parent.children():
        if QgsLayerTree.isGroup(child) and child.name() == name:
            return child
    return None


def _tells_group_by_itself() -> bool:
    # since 3.32 QGIS makes the group
    return hasattr(QgsProcessingContext.LayerDetails, "groupName")
