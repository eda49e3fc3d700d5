"""Drives the real QGIS desktop from inside: ``qgis --code driver.py``.

The scenario is a generator that QGIS's own event loop resumes, so that everything happens as it
does for a user: ``yield 0.5`` waits half a second, ``yield condition`` until ``condition()`` is
true. The file ``outcome.json`` says how it ended; QGIS's exit code says it too.

Variables: HYPERKD_SCENARIO (file with ``play(desk)``), HYPERKD_SCREENSHOTS (folder), and
HYPERKD_GUI_LIMIT_S for the whole scenario.
"""

import faulthandler
import json
import os
import runpy
import time
import traceback
from pathlib import Path

import processing
import qgis.utils
from qgis.core import Qgis, QgsProject
from qgis.gui import QgsMessageBar
from qgis.PyQt.QtCore import Qt, QTimer
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QApplication, QPushButton, QWidget
from qgis.utils import iface

LIMIT_S = float(os.environ.get("HYPERKD_GUI_LIMIT_S", "150"))
CONDITION_LIMIT_S = 60.0
TICK_MS = 40


class Desk:
    """What a scenario sees and touches."""

    def __init__(self):
        self.iface = iface
        self.window = iface.mainWindow()
        self.pictures = Path(os.environ["HYPERKD_SCREENSHOTS"])
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.facts = {"qgis": Qgis.QGIS_VERSION}
        self.failure = None
        self.complaints = 0
        """Messages in dialogs' bars: of parameters that are not as they should be."""
        self._count = 0

    def picture(self, name, widget=None):
        """Keep a picture of a widget, or of the whole screen."""
        self._count += 1
        path = self.pictures / f"{self._count:02d}-{name}.png"
        shown = widget.grab() if widget else QApplication.primaryScreen().grabWindow(0)
        assert shown.save(str(path)), path

    def soon(self, action):
        """Do what opens a modal dialog: by an event of its own, so that the scenario goes on."""

        def act():
            try:
                action()
            except Exception:
                self.failure = traceback.format_exc()

        QTimer.singleShot(0, act)

    def child(self, parent, kind, name=None, text=None):
        """Find a widget by its class and its object name or its text."""
        for widget in parent.findChildren(kind):
            if name in (None, widget.objectName()) and (
                text is None or widget.text().replace("&", "") == text
            ):
                return widget
        raise LookupError(f"There is no {kind.__name__} {name or text} in {parent}.")

    def dialog(self, class_name):
        """Find a dialog that is open; None when there is none."""
        for widget in QApplication.topLevelWidgets():
            if type(widget).__name__ == class_name and widget.isVisible():
                return widget
        return None

    def open_algorithm(self, name, parameters):
        """Open an algorithm's dialog and fill it in; a generator that gives the dialog."""
        dialog = processing.createAlgorithmDialog(f"hyperkd:{name}", {})
        dialog.resize(980, 800)
        dialog.move(140, 40)
        dialog.show()
        yield 0.5
        dialog.setParameters(parameters)
        yield 0.3
        return dialog

    def run(self, dialog, name):
        """Click on Run, wait, keep a picture of the log, close; a generator."""
        finished = []
        dialog.algorithmFinished.connect(lambda successful, results: finished.append(successful))
        QTest.mouseClick(self.child(dialog, QPushButton, text="Run"), Qt.MouseButton.LeftButton)
        yield lambda: finished
        yield 0.3
        self.picture(name, dialog)
        assert finished == [True], "the algorithm failed; the log is in the picture"
        yield from self.close(dialog)

    def close(self, dialog):
        """Close a dialog, and count its complaints; a generator."""
        self.complaints += sum(len(bar.items()) for bar in dialog.findChildren(QgsMessageBar))
        dialog.close()
        yield 0.3

    def names_in_sight(self, dialog):
        """Name the parameters that are not folded away."""
        advanced = self.child(dialog, QWidget, "grpAdvanced")
        return {
            name
            for name, wrapper in dialog.mainWidget().wrappers.items()
            if not advanced.isAncestorOf(widget_of(wrapper))
        }

    def type_into(self, widget, text):
        """Type as a user does."""
        widget.setFocus()
        QTest.keyClicks(widget, text)


def widget_of(wrapper):
    """Find a parameter's widget; wrappers in Python, the plugin's own, keep it themselves."""
    return getattr(wrapper, "widget", None) or wrapper.wrappedWidget()


class Stage:
    """Plays a scenario, and ends QGIS with its outcome."""

    def __init__(self, play):
        self._desk = Desk()
        self._scene = play(self._desk)
        self._started_s = time.monotonic()
        self._condition = None
        self._resume_s = self._give_up_s = 0.0
        self._inside = False
        self._timer = QTimer()
        self._timer.timeout.connect(self._tick)
        self._timer.start(TICK_MS)

    def _tick(self):
        if self._inside:
            return
        self._inside = True
        try:
            self._go_on()
        except StopIteration:
            self._end("")
        except BaseException:
            self._end(traceback.format_exc())
        finally:
            self._inside = False

    def _go_on(self):
        now_s = time.monotonic()
        if self._desk.failure:
            raise RuntimeError(self._desk.failure)
        if now_s - self._started_s > LIMIT_S:
            raise TimeoutError(f"the scenario takes longer than {LIMIT_S:.0f} s")
        if self._condition is not None and not self._condition():
            if now_s > self._give_up_s:
                self._scene.throw(TimeoutError("this never became true"))
            return
        if now_s < self._resume_s:
            return
        wish = next(self._scene)
        self._condition = wish if callable(wish) else None
        self._resume_s = now_s if callable(wish) else now_s + wish
        self._give_up_s = now_s + CONDITION_LIMIT_S

    def _end(self, failure):
        self._timer.stop()
        if failure:
            self._desk.picture("FAILED")
        outcome = {
            "failure": failure,
            "seconds": round(time.monotonic() - self._started_s, 2),
            "complaints": self._desk.complaints,
            **self._desk.facts,
        }
        for widget in QApplication.topLevelWidgets():  # modal loops end with their dialogs
            if widget is not self._desk.window and widget.isVisible():
                widget.close()
        QTimer.singleShot(0, lambda: self._leave(outcome))

    def _leave(self, outcome):
        # with layers in the project, QGIS 3.22 aborts at its end
        QgsProject.instance().setDirty(False)
        iface.newProject(False)
        outcome["unloaded"] = qgis.utils.unloadPlugin("hyperkd")
        code = 1 if outcome["failure"] or not outcome["unloaded"] else 0
        path = self._desk.pictures / "outcome.json"
        path.write_text(json.dumps(outcome, indent=1), encoding="utf-8")
        QTimer.singleShot(8000, lambda: os._exit(code))  # when QGIS does not find its end
        QApplication.exit(code)


def begin():
    global stage  # kept alive by this module
    scenario = runpy.run_path(os.environ["HYPERKD_SCENARIO"])
    stage = Stage(scenario["play"])


faulthandler.enable()
faulthandler.dump_traceback_later(LIMIT_S + 20, exit=True)
# this runs before QGIS's event loop does
QTimer.singleShot(0, begin)
