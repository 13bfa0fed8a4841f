"""Which workflows and actions there are."""

import pytest

from labctl.errors import Invalid
from labctl.maintenance import config
from labctl.maintenance.actions.dummy import Dummy
from labctl.maintenance.workflows.default import DefaultWorkflow


def test_workflows_and_actions_are_found_by_their_names() -> None:
    assert {"default", "fake"} <= {*config.workflows()}
    assert {"check", "command", "dummy", "reboot", "role"} <= {*config.actions()}
    assert isinstance(config.workflow("default"), DefaultWorkflow)
    assert isinstance(config.action("dummy", {"seconds": 1}), Dummy)


def test_a_name_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(Invalid, match=r"no labctl.workflows plugin 'vnf'; installed: default, fake"):
        config.workflow("vnf")
    with pytest.raises(Invalid, match=r"no labctl.actions plugin 'nosuch'; installed: check, command, dummy"):
        config.action("nosuch", {})


def test_what_is_wrong_with_the_metadata_of_an_action_is_told() -> None:
    with pytest.raises(Invalid, match=r"^seconds: "):
        config.action("dummy", {"seconds": -1})
