import pytest

from engine.errors import RequestError
from engine.jobs import commands, find_job


def test_every_command_has_its_request_and_function():
    assert {"classify", "estimate", "train_classifier", "train_regression"} <= set(commands())
    for command in commands():
        assert find_job(command).run.__name__ == command


@pytest.mark.parametrize("name", ["request", "shared", "shared.training", "__init__"])
def test_what_jobs_share_is_no_command(name):
    with pytest.raises(RequestError, match="There is no command"):
        find_job(name)
