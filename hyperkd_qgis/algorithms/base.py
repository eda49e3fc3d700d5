"""What all algorithms share: from parameters to a request, from a result to layers.

An algorithm names its command and its parameters. The request follows from them: each parameter
goes over under its name in lower case, as what its type is for the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from qgis.core import (
    QgsApplication,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputDefinition,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterDefinition,
    QgsProcessingUtils,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtGui import QIcon

from ..engine_client import EngineFailure, JobCancelledError
from ..engine_session import EngineSession
from ..environment import EngineMissingError
from ..help import HelpPage
from ..layers import ResultLook, finish_when_loaded
from ..listener import FeedbackListener
from ..request import request_parameters, toolbox_results
from ..sources import Exports, SourceError
from . import parameters as make
from .values import ValueReader, same_file

RESOURCES = Path(__file__).resolve().parents[2] / "resources"

SCORES = {
    "OVERALL_ACCURACY": "Overall accuracy",
    "BALANCED_ACCURACY": "Balanced accuracy",
    "KAPPA": "Cohen's kappa",
    "F1_MACRO": "F1, mean of the classes",
    "IOU_MACRO": "IoU, mean of the classes",
}


class EngineAlgorithm(QgsProcessingAlgorithm):
    """One command of the engine as an algorithm of the toolbox.

    Args:
        session: the engine that all algorithms share.
    """

    command: ClassVar[str] = ""
    title: ClassVar[str] = ""
    keywords: ClassVar[tuple[str, ...]] = ()
    section: ClassVar[tuple[str, str]] = ("landcover", "Land cover")
    looks: ClassVar[dict[str, ResultLook]] = {}
    scene_parameter: ClassVar[str] = "INPUT"
    report_name: ClassVar[str] = ""
    """Of a temporary file, where a report is all that the algorithm makes."""

    def __init__(self, session: EngineSession) -> None:
        super().__init__()
        self.session = session
        self._request: dict[str, Any] = {}
        self._problem = ""
        self._exports: Exports | None = None
        self._scene_name = ""
        self._results: dict[str, Any] = {}

    def define(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List the parameters, in the order of the dialog."""
        return ()

    def define_outputs(self) -> Iterable[QgsProcessingOutputDefinition]:
        """List the outputs that are no files: numbers and texts."""
        return ()

    # What QGIS asks about the algorithm

    def createInstance(self) -> EngineAlgorithm:
        """Make a fresh one: each run has its own."""
        return type(self)(self.session)

    def name(self) -> str:
        """Name the algorithm for scripts; never changed."""
        return self.command.replace("_", "")

    def displayName(self) -> str:
        """Name the algorithm for people."""
        return self.tr(self.title)

    def groupId(self) -> str:
        """Name the group for scripts."""
        return self.section[0]

    def group(self) -> str:
        """Name the group for people."""
        return self.tr(self.section[1])

    def tags(self) -> list[str]:
        """List words that find the algorithm in the toolbox."""
        return [self.tr(word) for word in ("hyperspectral", "hyperkd", *self.keywords)]

    def icon(self) -> QIcon:
        """Draw the algorithm in the toolbox."""
        return QIcon(self.svgIconPath())

    def svgIconPath(self) -> str:
        """Draw the algorithm in the model designer."""
        return str(RESOURCES / "icons" / f"{self.name()}.svg")

    def help_page(self) -> HelpPage:
        """Read the algorithm's help."""
        return HelpPage.read(RESOURCES / "help" / f"{self.name()}.md")

    def shortDescription(self) -> str:
        """Say in a sentence what the algorithm does."""
        return self.tr(self.help_page().first_sentence())

    def shortHelpString(self) -> str:
        """Show the whole help beside the parameters; as text in a terminal."""
        if QgsApplication.platform() == "qgis_process":
            return self.help_page().as_text()
        shown = [*self.outputDefinitions(), *self.parameterDefinitions()]
        return self.help_page().as_html({item.name(): item.description() for item in shown})

    def helpUrl(self) -> str:
        """Lead to the plugin's page."""
        return "https://github.com/hyperkd/hyperkd-qgis"

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Add the parameters and outputs, with their help."""
        entries = self.help_page().entries()
        for definition in self.define():
            definition.setHelp(entries.get(definition.name(), ""))
            self.addParameter(definition)
        for output in self.define_outputs():
            self.addOutput(output)

    def canExecute(self) -> tuple[bool, str]:
        """Say what is missing when there is no engine; looks at a few paths, starts nothing."""
        try:
            self.session.find_python()
        except EngineMissingError as missing:
            return False, self.session.explain(missing)
        return True, ""

    def checkParameterValues(
        self, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> tuple[bool, str]:
        """Check what can be checked without reading pixels."""
        usable, message = super().checkParameterValues(parameters, context)
        if not usable:
            return usable, message
        values = ValueReader(self, parameters, context)
        problem = self.find_problem(values) or self._find_overwritten_input(values)
        return not problem, problem

    def find_problem(self, values: ValueReader) -> str:
        """Say in a sentence what is wrong with the parameters; empty when nothing is."""
        return ""

    # A run

    def prepareAlgorithm(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> bool:
        """Take all that is needed from the layers, in the thread that they belong to."""
        self._exports = Exports(context.transformContext())
        values = ValueReader(self, parameters, context, self._exports)
        try:
            self._request = request_parameters(self.build_request(values))
        except SourceError as error:
            # raised later: what is raised here, QGIS keeps from scripts
            self._problem = str(error)
        scene = values.layer(self.scene_parameter) if self.scene_parameter else None
        self._scene_name = scene.name() if isinstance(scene, QgsRasterLayer) else ""
        return True

    def build_request(self, values: ValueReader) -> dict[str, Any]:
        """Read all inputs as the engine wants them, under the toolbox's names."""
        request = values.read_inputs()
        if request.get("DEVICE") == "auto":
            request["DEVICE"] = self.session.settings().device
        return request

    def processAlgorithm(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> dict[str, Any]:
        """Have the engine do the work, and wait."""
        try:
            if self._problem:
                raise QgsProcessingException(self._problem)
            outputs = self._read_outputs(parameters, context)
            result = self.run_engine({**self._request, **outputs}, feedback)
        finally:
            if self._exports is not None:
                self._exports.remove()
        declared = {output.name() for output in self.outputDefinitions()}
        self._results = toolbox_results(result, declared)
        return self._results

    def run_engine(
        self, request: dict[str, Any], feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Send a request; whatever ends it early becomes a sentence."""
        try:
            return self.session.client.run(self.command, request, FeedbackListener(feedback))
        except JobCancelledError:
            raise QgsProcessingException(self.cancelled_text(request)) from None
        except EngineMissingError as missing:
            raise QgsProcessingException(missing.as_text()) from None
        except EngineFailure as failure:
            raise QgsProcessingException(str(failure)) from None

    def cancelled_text(self, request: dict[str, Any]) -> str:
        """Say what a cancelled run leaves behind."""
        return self.tr("Cancelled. Nothing was written.")

    def postProcessAlgorithm(
        self, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Arrange how the outputs arrive in the project."""
        for name, look in self.looks.items():
            definition = self.parameterDefinition(name)
            path, legend_path = (self._results.get(key) or "" for key in (name, look.legend))
            finish_when_loaded(
                context, path, look, definition.description(), self._scene_name, legend_path
            )
        return {}

    def tr(self, text: str) -> str:
        """Translate a text of the plugin."""
        return QCoreApplication.translate("HyperKD", text)

    def number_outputs(self, titles: Mapping[str, str]) -> list[QgsProcessingOutputDefinition]:
        """Declare outputs that are numbers, by name with a title for people."""
        return [QgsProcessingOutputNumber(name, self.tr(title)) for name, title in titles.items()]

    def text_output(self, name: str, title: str) -> QgsProcessingOutputDefinition:
        """Declare an output that is a text."""
        return QgsProcessingOutputString(name, self.tr(title))

    def define_package_texts(self) -> Iterable[QgsProcessingParameterDefinition]:
        """List what a package of the user's own tells other people."""
        yield make.text("TITLE", self.tr("Title of the package"))
        yield make.text("DESCRIPTION", self.tr("Description of the package"))
        yield make.text("LICENCE", self.tr("Licence of the package"), default="other")
        yield make.text("ATTRIBUTION", self.tr("Whom the licence asks to name"))

    def _read_outputs(
        self, parameters: dict[str, Any], context: QgsProcessingContext
    ) -> dict[str, Any]:
        outputs = ValueReader(self, parameters, context).read_outputs()
        if self.report_name and not outputs["REPORT"]:
            outputs["REPORT"] = QgsProcessingUtils.generateTempFilename(self.report_name)
        return request_parameters(outputs)

    def _find_overwritten_input(self, values: ValueReader) -> str:
        for output, path in values.output_paths().items():
            for name, source in values.input_paths().items():
                if same_file(path, source):
                    return self.tr(
                        "{output} would overwrite {name} ({path}). Choose another file."
                    ).format(output=output, name=name, path=path)
        return ""
