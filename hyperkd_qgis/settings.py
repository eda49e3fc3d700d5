"""What the user can set, kept where Processing keeps the options of its providers."""

from __future__ import annotations

from dataclasses import dataclass

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsSettings
from qgis.PyQt.QtGui import QIcon

DEVICES = ("auto", "cpu", "cuda")
GROUP = "HyperKD"

ENGINE_PYTHON = "hyperkd/engine_python"
DEVICE = "hyperkd/device"
IDLE_MINUTES = "hyperkd/idle_minutes"

_FOLDER = "Processing/Configuration/"


@dataclass(frozen=True)
class Settings:
    """The settings as they are now.

    Args:
        engine_python: the engine's interpreter; empty: found where it is usually made.
        device: what "auto" means in the algorithms, one of `DEVICES`.
        idle_minutes: after how many idle minutes the engine ends itself.
    """

    engine_python: str = ""
    device: str = "auto"
    idle_minutes: int = 10

    @classmethod
    def read(cls) -> Settings:
        """Read the settings; a value that makes no sense counts as not set."""
        stored = QgsSettings()
        python = stored.value(_FOLDER + ENGINE_PYTHON, "")
        device = _whole_number(stored.value(_FOLDER + DEVICE), 0)
        minutes = _whole_number(stored.value(_FOLDER + IDLE_MINUTES), cls.idle_minutes)
        return cls(
            engine_python=str(python or "").strip(),
            device=DEVICES[device] if 0 <= device < len(DEVICES) else "auto",
            idle_minutes=minutes if minutes > 0 else cls.idle_minutes,
        )


def add_options(icon: QIcon) -> None:
    """Show the settings in Settings > Options > Processing > Providers."""
    ProcessingConfig.settingIcons[GROUP] = icon
    options = (
        Setting(
            GROUP,
            ENGINE_PYTHON,
            "Engine interpreter (empty: found by itself)",
            "",
            valuetype=Setting.FILE,
        ),
        Setting(
            GROUP,
            DEVICE,
            'Device that "auto" means',
            DEVICES[0],
            valuetype=Setting.SELECTION,
            options=list(DEVICES),
        ),
        Setting(
            GROUP, IDLE_MINUTES, "Minutes until an idle engine ends", 10, valuetype=Setting.INT
        ),
    )
    for option in options:
        ProcessingConfig.addSetting(option)
    ProcessingConfig.readSettings()


def remove_options() -> None:
    """Take the settings out of the options dialog; their values stay."""
    for name in (ENGINE_PYTHON, DEVICE, IDLE_MINUTES):
        if name in ProcessingConfig.settings:
            ProcessingConfig.removeSetting(name)
    ProcessingConfig.settingIcons.pop(GROUP, None)


def _whole_number(value: object, default: int) -> int:
    try:
        return int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return default
