"""The workflows of the lab, under the contract of workflows."""

from typing import ClassVar

import pytest

from labctl.maintenance.workflow import Workflow
from labctl.maintenance.workflows.default import DefaultWorkflow
from labctl.maintenance.workflows.fake import FakeWorkflow

from .workflow import WorkflowContract


class TestDefaultWorkflow(WorkflowContract):
    """The lab's own."""

    @pytest.fixture
    def workflow(self) -> Workflow:
        return DefaultWorkflow()


class TestFakeWorkflow(WorkflowContract):
    """The fake, as it is without hints."""

    @pytest.fixture
    def workflow(self) -> Workflow:
        return FakeWorkflow()


class TestSlowFakeWorkflow(TestFakeWorkflow):
    """The fake, told to take its time."""

    metadata: ClassVar = {
        "states": ["MAINTENANCE", "START_MAINTENANCE", "MAINTENANCE_COMPLETE"],
        "seconds": {"START_MAINTENANCE": 5},
    }
