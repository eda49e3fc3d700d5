"""A job that takes its time, and listens while it does."""

import time

from engine.jobs.request import JobRequest


class Request(JobRequest):
    seconds: float = 60.0


def nap(request, feedback):
    end_s = time.monotonic() + request.seconds
    while (left_s := end_s - time.monotonic()) > 0:
        feedback.raise_if_cancelled()
        feedback.progress(1 - left_s / request.seconds, "Napping")
        time.sleep(0.02)
    return {"seconds": request.seconds}
