"""What all requests share: checked when made, unknown parameters refused."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import RequestError


class JobRequest(BaseModel):
    """The parameters of one job: the toolbox's names in lower case, paths as strings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, parameters: dict[str, Any]) -> Self:
        """Check the parameters; optional ones may be left out or null.

        Raises:
            RequestError: one sentence for every parameter that is wrong.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problems = (
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors(include_url=False)
            )
            raise RequestError(
                f"The request is not valid: {'; '.join(problems)}.",
                f"The parameters are {', '.join(cls.model_fields)}.",
            ) from error


class DeviceRequest(JobRequest):
    """The parameters of every job that runs a model."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    require_gpu: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class PredictRequest(DeviceRequest):
    """The parameters of every job that runs a model over one scene.

    ``input`` is a source that GDAL opens, or several single-band files that form one scene.
    ``extent`` is ``(xmin, ymin, xmax, ymax)`` in the scene's CRS.
    """

    input: str | list[str]
    model: str
    mask: str | None = None
    extent: tuple[float, float, float, float] | None = None
    bands: str | None = None
    tile_size: int | None = Field(default=None, ge=16, le=4096)
