"""The classes of a training run: from the field's values, or as the layer's categories say."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import LabelError
from engine.raster.labels import MAX_CLASSES, FieldValue
from engine.raster.style import ClassInfo
from engine.training.samples import FEW_PIXELS, MIN_PIXELS, Samples

# Ten hues that stay apart for colour-blind readers too: Tol's "muted" scheme and grey.
PALETTE = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933",
    "#ddcc77", "#cc6677", "#882255", "#aa4499", "#777777",
)  # fmt: skip


@dataclass(frozen=True)
class LabelClass:
    """A class, and the value of the class field that stands for it."""

    info: ClassInfo
    field_value: FieldValue


def classes_of_values(values: Sequence[FieldValue]) -> tuple[LabelClass, ...]:
    """Make classes of a field's values: whole numbers keep their value, text is numbered."""
    kept = all(isinstance(value, int) and 1 <= value <= MAX_CLASSES for value in values)
    return tuple(
        LabelClass(
            ClassInfo(int(value) if kept else number, str(value), categorical_color(number - 1)),
            value,
        )
        for number, value in enumerate(values, start=1)
    )


def categorical_color(index: int) -> str:
    """A colour for the class with this index; beyond the palette, hues by the golden angle."""
    if index < len(PALETTE):
        return PALETTE[index]
    red, green, blue = colorsys.hls_to_rgb((index * 0.381966) % 1.0, 0.5, 0.6)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def present_classes(
    wanted: Sequence[LabelClass], values: Sequence[FieldValue], source: str
) -> tuple[tuple[LabelClass, ...], tuple[str, ...]]:
    """Keep the wanted classes that have labels.

    Args:
        wanted: as the user lists them; their field values may be written as text.
        values: that the field holds.
        source: of the labels, for messages.

    Returns:
        the classes, with field values as the field holds them, and notes about what is left out.

    Raises:
        LabelError: fewer than two classes are left.
    """
    by_text = {str(value): value for value in values}
    found = tuple(
        LabelClass(item.info, by_text[str(item.field_value)])
        for item in wanted
        if str(item.field_value) in by_text
    )
    names = ", ".join(item.info.name for item in found)
    if len(found) < 2:
        raise LabelError(
            f"The labels of {source} are of one class only ({names})."
            if found
            else f"None of the classes is among the values of {source}: "
            f"{', '.join(map(str, values[:10]))}.",
            "A classifier needs two classes or more: label another class, or choose another field.",
        )
    notes = []
    missing = [item.info.name for item in wanted if str(item.field_value) not in by_text]
    if missing:
        notes.append(f"No labels for {', '.join(missing)}: left out of the model.")
    used = {item.field_value for item in found}
    ignored = [str(value) for value in values if value not in used]
    if ignored:
        notes.append(f"Labels with the values {', '.join(ignored)} are in no class and not used.")
    return found, tuple(notes)


def check_class_pixels(samples: Samples, classes: Sequence[LabelClass]) -> tuple[str, ...]:
    """Refuse classes with too few pixels to train and to test.

    Returns:
        warnings about classes with few.

    Raises:
        LabelError: a class has fewer than three pixels, or only one class has any.
    """
    label = samples.class_index
    counts = [int((label == index).sum()) for index in range(len(classes))]
    named = list(zip([item.info.name for item in classes], counts, strict=True))
    if sum(count > 0 for count in counts) < 2:
        raise LabelError(
            "The labels on the scene are of one class only: "
            + ", ".join(f"{name} {count} px" for name, count in named)
            + ".",
            "A classifier needs two classes or more: label another class on the scene.",
        )
    short = [(name, count) for name, count in named if count < MIN_PIXELS]
    if short:
        raise LabelError(
            " ".join(
                f"The class {name!r} has {_pixels(count)} on the scene." for name, count in short
            ),
            f"Each class needs {MIN_PIXELS} labelled pixels or more, better {FEW_PIXELS} in "
            "several places: label more of it, or leave it out of the classes.",
        )
    return tuple(
        f"The class {name!r} has only {count} labelled pixels: its scores say little."
        for name, count in named
        if count < FEW_PIXELS
    )


def _pixels(count: int) -> str:
    words = {0: "no labelled pixel", 1: "only one labelled pixel", 2: "only two labelled pixels"}
    return words[count]
