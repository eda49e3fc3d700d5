"""A job whose libraries print wherever they can."""

import os
import subprocess
import sys

from engine.jobs.request import JobRequest


class Request(JobRequest):
    pass


def shout(request, feedback):
    print("a library prints")
    sys.stdout.flush()
    os.write(1, b"a C library prints, without a newline")
    subprocess.run([sys.executable, "-c", "print('a program prints')"], check=True)
    swallowed = subprocess.run(
        [sys.executable, "-c", "import sys; sys.exit(len(sys.stdin.read()))"], check=False
    )
    return {"swallowed": swallowed.returncode}
