"""A job that fails in the way that is asked for."""

from engine.errors import SceneError
from engine.jobs.request import JobRequest


class Request(JobRequest):
    how: str


def fail(request, feedback):
    if request.how == "known":
        raise SceneError("The scene is upside down.", "Turn it round.")
    if request.how == "memory":
        raise MemoryError
    if request.how == "exit":
        raise SystemExit(0)
    raise KeyError("a bug")
