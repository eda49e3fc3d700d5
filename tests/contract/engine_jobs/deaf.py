"""A job that does not look whether it is cancelled."""

import time

from engine.jobs.request import JobRequest


class Request(JobRequest):
    pass


def deaf(request, feedback):
    feedback.info("started")
    time.sleep(60)
    return {}
