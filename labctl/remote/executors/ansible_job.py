"""One job of the ansible executor, in a process of its own: the only place where labctl imports Ansible.

What comes from users is never a template: Ansible 2.19 evaluates only texts that are marked as trusted, which those of
a request are not. It never is an option, a host pattern or a path either: plays are made of values, and the hosts of a
job become a group of their own, whatever characters are in their names.
"""

import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.cli.playbook import PlaybookCLI
from ansible.errors import AnsibleError
from ansible.executor.playbook_executor import PlaybookExecutor
from ansible.executor.process import worker
from ansible.executor.task_executor import TaskExecutor
from ansible.executor.task_queue_manager import TaskQueueManager
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook import Playbook
from ansible.playbook.play import Play
from ansible.playbook.task_include import TaskInclude
from ansible.plugins import loader as plugins
from ansible.plugins.callback import CallbackBase
from ansible.utils.collection_loader import AnsibleCollectionConfig
from ansible.utils.display import Display

from labctl.remote.states import Operation, Status

Send = Callable[[dict[str, Any]], None]

MODULES = Path(__file__).resolve().parent / "ansible_modules"
#: The modules of these operations are always the same, so that jobs share what is made of them to be sent.
SHARED = (Operation.PING, Operation.FACTER, Operation.EXECUTE)
CACHE = "ansiballz_cache"
#: What is told of a host that had to wait for its turn too long.
TOO_LATE = "not begun: the time was up"
#: Characters of a text that are told; what is longer is cut in the middle.
MOST = 5 * 1024 * 1024
MOST_MESSAGE = 2000
#: A directory whose path is longer makes sockets of connections that the kernel refuses.
MOST_PATH = 60
#: Only with a terminal, so without this, a command ends when its connection is cut.
NO_PIPELINING = {"ansible_pipelining": False, "ansible_ssh_pipelining": False}


def warm_up(directory: Path) -> None:
    """Load what every job needs; before the first fork."""
    plugins.init_plugin_loader([])
    plugins.module_loader.add_directory(str(MODULES))
    for name in ("connection", "shell", "become", "strategy", "cache", "callback"):
        list(getattr(plugins, f"{name}_loader").all(class_only=True))
    _, origin = constants.config.get_config_value_and_origin(
        "control_path_dir", plugin_type="connection", plugin_name="ssh"
    )
    if origin == "default" and len(str(directory)) <= MOST_PATH:
        os.environ["ANSIBLE_SSH_CONTROL_PATH_DIR"] = str(directory / "cp")
    for name in ("ping", "service", "command", "gather_facts", "normal"):
        plugins.action_loader.get(name, class_only=True)
    # Reads the plugins of inventories, what collections are, and everything that is needed to load a play.
    loader = DataLoader()
    InventoryManager(loader, sources=["localhost,"])
    Play().load({"hosts": "localhost", "tasks": [{"ansible.builtin.ping": {}}]}, loader=loader)
    (directory / CACHE).mkdir()


def carry_out(request: dict[str, Any], send: Send, directory: Path) -> None:
    """Do what is asked for, and send what there is to tell; ``error`` says why it could not be done."""
    constants.DEFAULT_LOCAL_TMP = tempfile.tempdir = str(directory)
    try:
        if request["what"] == "hosts":
            tell_hosts(request, send)
        else:
            Job(request, send, directory).run()
    except AnsibleError as error:
        send({"error": one_line(error)})


def tell_hosts(request: dict[str, Any], send: Send) -> None:
    """Send the names of all hosts with their groups."""
    inventory = read_strictly(lambda: Job(request).prepare()[1])
    hosts = {host.name: sorted(str(group.name) for group in host.get_groups()) for host in inventory.get_hosts("all")}
    send({"hosts": hosts, "sources": [str(source) for source in inventory._sources]})


def read_strictly(read: Callable[[], Any]) -> Any:
    """Have an inventory read; one that is broken is an error, not a warning as it is for an order."""
    constants.INVENTORY_ANY_UNPARSED_IS_FAILED = True
    complaints: list[str] = []
    Display.error_as_warning = lambda self, msg, exception, **rest: complaints.append(one_line(exception))
    try:
        return read()
    except AnsibleError as error:
        raise AnsibleError("; ".join([one_line(error), *complaints])) from error


def begin_only_until(deadline: float) -> None:
    """Have Ansible begin nothing on a host that has its turn only after a moment of the monotonic clock.

    There may be more hosts than are done at once, and what is begun then would be cut off half done.
    """

    class InTime(TaskExecutor):
        def run(self) -> Any:
            if time.monotonic() >= deadline:
                return {"failed": True, "changed": False, "msg": TOO_LATE}
            return super().run()

    worker.TaskExecutor = InTime


class Job:
    """One run of Ansible."""

    def __init__(self, request: Mapping[str, Any], send: Send = lambda _: None, directory: Path = Path()) -> None:
        self._request = request
        self._send = send
        self._directory = directory
        self._deadline = time.monotonic() + request["timeout"]
        self._hosts: list[str] = request.get("hosts", [])
        self._arguments: Mapping[str, Any] = request.get("arguments", {})
        self._group = f"labctl_{secrets.token_hex(8)}"

    def prepare(self) -> tuple[Any, Any, Any]:
        """Give Ansible's loader, inventory and variables."""
        words = [word for source in self._request["inventory"] or () for word in ("--inventory", source)]
        forks = self._request["forks"]
        if forks is None:
            value, origin = constants.config.get_config_value_and_origin("DEFAULT_FORKS")
            forks = value if origin != "default" else os.cpu_count() or 1
        tags = self._arguments.get("partial")

        class Cli(PlaybookCLI):
            def post_process_args(self, options: Any) -> Any:
                options = super().post_process_args(options)
                options.forks = forks
                options.tags = list(tags) if tags else options.tags
                return options

        cli = Cli(["ansible-playbook", *words, "--", "none"])
        cli.parse()
        self._passwords = dict(zip(("conn_pass", "become_pass"), cli.ask_passwords(), strict=True))
        return cli._play_prereqs()

    def run(self) -> None:
        """Carry out an operation."""
        operation = Operation(self._request["operation"])
        if operation in SHARED:
            (self._directory / CACHE).symlink_to(self._directory.parent / CACHE)
        playbooks = self._request["playbooks"]
        # Before the inventory: connections may depend on variables that are beside the plays.
        plugins.add_all_plugin_dirs(playbooks)
        AnsibleCollectionConfig.playbook_paths = [playbooks]
        loader, inventory, variables = self.prepare()
        loader.set_basedir(playbooks)
        if missing := [name for name in self._hosts if name not in inventory.hosts]:
            error = f"not in the inventory: {', '.join(missing)}"
            try:
                read_strictly(lambda: InventoryManager(loader, inventory._sources))
            except AnsibleError as reason:
                error += f"; the inventory cannot be read: {one_line(reason)}"
            return self._send({"error": error})
        self._choose(inventory, variables)
        reporter = Reporter(operation, self._send)
        if operation == Operation.EXECUTE:
            begin_only_until(self._deadline)
        if operation == Operation.DEPLOY:
            self._deploy(loader, inventory, variables, reporter)
        else:
            self._operate(self._task(operation), loader, inventory, variables, reporter)
        self._tell_of_the_rest(reporter)
        return None

    def _choose(self, inventory: Any, variables: Any) -> None:
        """Put the hosts of the job into a group of their own, and give those that are this machine what they need."""
        data = inventory._inventory
        data.add_group(self._group)
        data.add_child("all", self._group)
        _, origin = constants.config.get_config_value_and_origin("INTERPRETER_PYTHON")
        for name in self._hosts:
            host = inventory.hosts[name]
            data.add_child(self._group, name)
            known = variables.get_vars(host=host, include_hostvars=False)
            if known.get("ansible_connection", constants.DEFAULT_TRANSPORT) == "local":
                if origin == "default" and "ansible_python_interpreter" not in known:
                    host.set_variable("ansible_python_interpreter", sys.executable)
                if "ansible_remote_tmp" not in known:
                    # It may be killed, and should leave nothing behind.
                    host.set_variable("ansible_remote_tmp", str(self._directory / "tmp"))

    # Operations of our own

    def _task(self, operation: Operation) -> dict[str, Any]:
        arguments = self._arguments
        if operation == Operation.PING:
            return {"ansible.builtin.ping": {}}
        if operation == Operation.FACTER:
            return {"ansible.builtin.setup": {}}
        if operation == Operation.EXECUTE:
            return {"labctl_execute": {"command": arguments["command"], "timeout": self._request["timeout"]}}
        state = "stopped"
        if arguments["start"]:
            again = "reloaded" if arguments["graceful"] else "restarted"
            state = again if arguments["restart"] else "started"
        return {"ansible.builtin.service": {"name": arguments["name"], "state": state}}

    def _operate(self, task: dict[str, Any], loader: Any, inventory: Any, variables: Any, reporter: "Reporter") -> None:
        variables._extra_vars = dict(NO_PIPELINING) if "ansible.builtin.service" in task else {}
        play = {"name": "labctl", "hosts": self._group, "gather_facts": False, "tasks": [task]}
        loaded = Play().load(play, variable_manager=variables, loader=loader)
        playbook = Playbook(loader)
        playbook._entries.append(loaded)
        playbook._file_name = "labctl"
        manager = TaskQueueManager(inventory, variables, loader, self._passwords, forks=self._forks())
        try:
            reporter.listen(manager)
            manager.send_callback("v2_playbook_on_start", playbook)
            manager.run(loaded)
            manager.send_callback("v2_playbook_on_stats", manager._stats)
        finally:
            manager.cleanup()
            loader.cleanup_all_tmp_files()

    def _forks(self) -> int:
        from ansible import context

        return int(context.CLIARGS["forks"])

    # Roles

    def _deploy(self, loader: Any, inventory: Any, variables: Any, reporter: "Reporter") -> None:
        role = self._arguments["role"]
        playbooks = Path(self._request["playbooks"])
        places = [playbooks / "roles", *map(Path, constants.DEFAULT_ROLES_PATH or ())]
        # One with two dots is of a collection, which Ansible finds.
        if role.count(".") < 2 and not any((place / role).is_dir() for place in places):
            raise AnsibleError(f"there is no role {role} in {', '.join(dict.fromkeys(map(str, places)))}")
        extra_vars = self._arguments["extra_vars"]
        variables._extra_vars = {**extra_vars, **NO_PIPELINING, "_targets": self._group, "_role": role}
        executor = PlaybookExecutor([self._request["play"]], inventory, variables, loader, self._passwords)
        reporter.listen(executor._tqm)
        executor.run()

    def _tell_of_the_rest(self, reporter: "Reporter") -> None:
        """Say of every host that Ansible has left out that nothing was done."""
        for host in self._hosts:
            if host in reporter.told:
                continue
            message = "Ansible has left this host out"
            values: dict[str, Any] = {}
            if self._request["operation"] == Operation.DEPLOY:
                partial = self._arguments["partial"]
                if partial and not reporter.told:
                    message = f"nothing was done: no step has one of the tags {', '.join(partial)}"
                values = {"name": "nothing", "return_data": message}
            elif self._request["operation"] == Operation.EXECUTE:
                values = {"rtc": None, "stdout": "", "stderr": message}
            elif self._request["operation"] == Operation.FACTER:
                values = {"facts": {}}
            self._send({"host": host, "status": Status.FAILED, "values": {**values, "message": message}})


class Reporter(CallbackBase):
    """Sends how each step goes on each host, as it happens."""

    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "labctl"

    def __init__(self, operation: Operation, send: Send) -> None:
        super().__init__()
        self._operation = operation
        self._send = send
        self._names: dict[str, str] = {}
        self._manager: Any = None
        self._rescued: dict[str, int] = {}
        #: The hosts of which a result was told.
        self.told: set[str] = set()

    def listen(self, manager: Any) -> None:
        """Take the place of what would write to a terminal; other callbacks of the lab stay."""
        self._manager = manager
        self._load_name = "labctl"
        self._init_callback_methods()
        manager.load_callbacks()
        manager._callback_plugins[0] = self

    # What Ansible calls

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Keep the name of a step."""
        # Its name is a text without templates only now.
        self._names[task._uuid] = str(task.get_name()).strip()

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Keep the name of a step that others have asked for."""
        self._names[task._uuid] = str(task.get_name()).strip()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Announce a step."""
        if self._operation == Operation.DEPLOY and not isinstance(task, TaskInclude):
            values = {"name": self._name(task), "return_data": ""}
            self._send({"host": host.get_name(), "status": Status.ANNOUNCE, "values": values})

    def v2_runner_on_ok(self, result: Any) -> None:
        """Tell that a step went well."""
        self._tell(result, Status.CHANGED if result.is_changed() else Status.OK)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Tell that there was nothing to do."""
        self._tell(result, Status.SKIPPED)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Tell that a step failed, if that is what makes the host fail."""
        host = result.host.get_name()
        rescued = self._manager._stats.rescued.get(host, 0)
        if rescued > self._rescued.get(host, 0):
            self._rescued[host] = rescued
            self._tell(result, Status.OK, "failed, and the role has rescued it: ")
        elif ignore_errors:
            self._tell(result, Status.OK, "failed, and the role ignores it: ")
        else:
            self._tell(result, Status.FAILED, "")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Tell that a host could not be reached."""
        if result.task.ignore_unreachable:
            self._tell(result, Status.OK, "unreachable, and the role ignores it: ")
        else:
            self._tell(result, Status.UNREACHABLE, "")

    # What is made of it

    def _name(self, task: Any) -> str:
        return self._names.get(task._uuid) or str(task.get_name()).strip()

    def _tell(self, result: Any, status: Status, trouble: str | None = None) -> None:
        host = result.host.get_name()
        found = dict(result.result)
        message = "" if trouble is None else trouble + reason(found)
        if self._operation == Operation.EXECUTE and "rc" in found and "stdout" in found:
            # They say it all.
            message = str(found.get("trouble") or "")
        values = self._values(result, found, message)
        if message:
            values["message"] = message
        self.told.add(host)
        self._send({"host": host, "status": status, "values": values})

    def _values(self, result: Any, found: dict[str, Any], message: str) -> dict[str, Any]:
        if self._operation == Operation.FACTER:
            return {"facts": found.get("ansible_facts") or {}}
        if self._operation == Operation.EXECUTE:
            if isinstance(found.get("rc"), int) and "stdout" in found:
                return {"rtc": found["rc"], "stdout": cut(found["stdout"]), "stderr": cut(found.get("stderr", ""))}
            return {"rtc": None, "stdout": "", "stderr": message}
        if self._operation == Operation.DEPLOY:
            shown = {key: value for key, value in found.items() if key != "invocation" and key[:9] != "_ansible_"}
            return {"name": self._name(result.task), "return_data": cut(json.dumps(shown, default=str))}
        return {}


def reason(found: Mapping[str, Any]) -> str:
    """Say in one line why something failed."""
    for key in ("msg", "stderr", "module_stderr", "stdout", "module_stdout", "censored"):
        if text := " ".join(str(found.get(key) or "").split()):
            if key == "msg" and text in ("non-zero return code", "MODULE FAILURE"):
                more = " ".join(str(found.get("stderr") or found.get("module_stderr") or "").split())
                text = f"{text}: {more}" if more else text
            return cut(text, MOST_MESSAGE)
    for one in found.get("results") or ():
        if isinstance(one, dict) and (one.get("failed") or one.get("unreachable")):
            return reason(one)
    return "it gives no reason"


def cut(text: Any, most: int = MOST) -> str:
    """Leave out the middle of what is too long."""
    text = str(text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n... {len(text) - most} characters left out ...\n{text[-(most // 2) :]}"


def one_line(error: BaseException) -> str:
    """Say what went wrong, and in which file, in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    if (place := where(error)) and place not in text:
        text = f"{place}: {text}"
    return cut(text, MOST_MESSAGE)


def where(error: BaseException | None) -> str:
    """Tell the file and the line that an error is about; empty if it is about none."""
    while error is not None:
        context = getattr(error, "_formatted_source_context", None) or ""
        place = str(context).partition("\n")[0].removeprefix("Origin: ")
        if place.startswith("/"):
            return place
        error = error.__cause__
    return ""
