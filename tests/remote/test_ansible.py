"""The ansible executor: what users send stays what it is, what is wrong is told, and the lab configures it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.remote.executor import ExecutorError, Failed, Misconfigured, Order, Result, Run
from labctl.remote.executors.ansible import AnsibleExecutor
from labctl.remote.states import Operation, Status
from tests.acceptance.lab import alive, until
from tests.contracts.executor import read_all

from .ansible_lab import Lab

EVIL = "{{ lookup('pipe', 'touch %s') }}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab in which all hosts are this machine; tests that write into it make their own."""
    return Lab(tmp_path_factory.mktemp("lab"), None)


@pytest.fixture(scope="module")
def executor(lab: Lab) -> Iterator[AnsibleExecutor]:
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    yield executor
    executor.close()


@pytest.fixture
def own_lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "own", None)


@pytest.fixture
def make(own_lab: Lab) -> Iterator[Callable[..., AnsibleExecutor]]:
    made = []

    def make(**options: Any) -> AnsibleExecutor:
        made.append(AnsibleExecutor({"workdir": str(own_lab.directory), **options}, Path("unused")))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def begin(executor: AnsibleExecutor, operation: Operation, *hosts: str, timeout: float = 60, **arguments: Any) -> Run:
    return executor.begin(Order("jid", operation, hosts or ("web1",), arguments, timeout))


def execute(executor: AnsibleExecutor, command: str, *hosts: str) -> Result:
    run = begin(executor, Operation.EXECUTE, *hosts, command=command)
    [result] = read_all(run)
    assert run.error is None
    return result


def deploy(executor: AnsibleExecutor, role: str, *hosts: str, **arguments: Any) -> list[Result]:
    run = begin(executor, Operation.DEPLOY, *hosts, **{"role": role, "partial": None, "extra_vars": {}, **arguments})
    results = read_all(run)
    assert run.error is None
    return [result for result in results if result.status != Status.ANNOUNCE]


def error_of(executor: AnsibleExecutor, role: str) -> str:
    run = begin(executor, Operation.DEPLOY, role=role, partial=None, extra_vars={})
    assert read_all(run) == []
    return str(run.error)


# What users send


def test_a_command_is_no_template(executor: AnsibleExecutor, tmp_path: Path) -> None:
    command = "echo '" + EVIL.replace("'", '"') % (tmp_path / "evil") + " {% raw %} ${HOME} {{ 1 + 1 }}'"
    result = execute(executor, command)

    assert result.values["stdout"] == command.removeprefix("echo '").removesuffix("'") + "\n"
    assert not (tmp_path / "evil").exists()


def test_what_a_command_says_is_no_template(executor: AnsibleExecutor, tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.write_text(EVIL % (tmp_path / "evil"))

    assert execute(executor, f"cat {said} >&2; exit 4").values["stderr"] == said.read_text()
    assert not (tmp_path / "evil").exists()


def test_values_of_extra_vars_are_no_templates_at_any_depth(executor: AnsibleExecutor, tmp_path: Path) -> None:
    evil = EVIL % (tmp_path / "evil")
    given = [evil, {evil: evil}, "@/etc/passwd", "-e @/etc/passwd", "!vault x", {"__ansible_unsafe": evil}]
    results = deploy(executor, "web", extra_vars={"given": given})

    assert json.loads(results[0].values["return_data"])["msg"] == given
    assert "lookup('pipe'" in results[0].values["name"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "name",
    [
        "ansible_connection",
        "ansible_python_interpreter",
        "ansible_ssh_common_args",
        "ansible_shell_executable",
        "_targets",
        "_role",
        "inventory_hostname",
        "hostvars",
        "environment",
        "a b",
        "a-b",
        "{{ 1 }}",
        "",
        "é",
        "class",
    ],
)
def test_variables_that_say_how_something_is_run_cannot_be_set(executor: AnsibleExecutor, name: str) -> None:
    with pytest.raises(Failed, match="extra_vars: "):
        begin(executor, Operation.DEPLOY, role="web", partial=None, extra_vars={name: "x"})


@pytest.mark.parametrize("role", ["../web", "/etc", "-e", "", "{{ 1 }}", "a/b", "a\nb", "web "])
def test_what_is_no_name_of_a_role_is_refused(executor: AnsibleExecutor, role: str) -> None:
    with pytest.raises(Failed, match="role: "):
        begin(executor, Operation.DEPLOY, role=role, partial=None, extra_vars={})


@pytest.mark.parametrize("tag", ["all", "never", "tagged", "untagged", "always", "a,b", "", "-e", "{{ 1 }}", 1])
def test_what_is_no_tag_is_refused(executor: AnsibleExecutor, tag: object) -> None:
    with pytest.raises(Failed, match="partial: "):
        begin(executor, Operation.DEPLOY, role="web", partial=[tag], extra_vars={})


@pytest.mark.parametrize("name", ["--root=/", "a b", "", "../x", "{{ 1 }}", "a\0b"])
def test_what_is_no_name_of_a_service_is_refused(executor: AnsibleExecutor, name: str) -> None:
    with pytest.raises(Failed, match="name: "):
        begin(executor, Operation.SERVICE, name=name, start=True, restart=False, graceful=False)


def test_hosts_are_those_of_the_order_whatever_their_names(executor: AnsibleExecutor, lab: Lab) -> None:
    assert lab.hosts == tuple(name for name in executor.hosts() if name in lab.hosts)
    assert executor.hosts()["web1"] == {"all", "lab", "webs"}
    assert executor.hosts()["web:3"] == {"all", "lab", "webs"}

    for host in ("web:3", "fe80::1", "[v6]:22", "a,b", "!x", "--list"):
        assert execute(executor, "echo hello", host).host == host


def test_fifty_hosts_answer_each_once(own_lab: Lab, make: Callable[..., AnsibleExecutor]) -> None:
    names = [f"web{number}" for number in range(50)]
    own_lab.write_inventory({name: {} for name in names}, own_lab.common)
    results = read_all(begin(make(), Operation.PING, *names))

    assert sorted(result.host for result in results) == sorted(names)
    assert {result.status for result in results} == {Status.OK}


# Operations


def test_a_service_is_asked_for_the_state_that_is_wanted(executor: AnsibleExecutor, lab: Lab) -> None:
    flags = {
        "started": (True, False, False),
        "stopped": (False, False, False),
        "restarted": (True, True, False),
        "reloaded": (True, True, True),
    }
    for state, (start, restart, graceful) in flags.items():
        run = begin(executor, Operation.SERVICE, name="ngin@x.1", start=start, restart=restart, graceful=graceful)
        [result] = read_all(run)
        assert result.status == (Status.OK if state == "started" else Status.CHANGED)
        assert lab.services_asked_for[-1] == {"name": "ngin@x.1", "state": state}


def test_a_service_that_does_not_start_says_why(executor: AnsibleExecutor) -> None:
    [result] = read_all(begin(executor, Operation.SERVICE, name="broken", start=True, restart=False, graceful=False))

    assert result.status == Status.FAILED and "it does not start" in result.values["message"]


def test_what_a_command_leaves_behind_on_purpose_goes_on(executor: AnsibleExecutor) -> None:
    result = execute(executor, "setsid sleep 600 >/dev/null 2>&1 & echo $!; sleep 600 & echo $!")
    pids = [int(pid) for pid in result.values["stdout"].split()]
    try:
        assert result.status == Status.CHANGED and len(pids) == 2
        execute(executor, "true")
        assert all(alive(pid) for pid in pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_a_host_whose_turn_comes_when_the_time_is_over_does_not_begin(
    make: Callable[..., AnsibleExecutor], tmp_path: Path
) -> None:
    command = f"echo begun >> {tmp_path}/begun; sleep 600"
    run = begin(make(concurrency=1), Operation.EXECUTE, "web1", "web2", timeout=3, command=command)
    results = {result.host: result for result in read_all(run)}

    assert run.error is None
    assert results["web1"].values["rtc"] == 124
    assert (results["web2"].status, results["web2"].values["rtc"]) == (Status.FAILED, None)
    assert results["web2"].values["message"] == "not begun: the time was up"
    assert (tmp_path / "begun").read_text() == "begun\n"


def test_of_long_output_beginning_and_end_are_kept(executor: AnsibleExecutor) -> None:
    said = execute(executor, "echo first; head -c 9000000 /dev/zero | tr '\\0' x; echo; echo last").values["stdout"]

    assert len(said) < 5_000_000 and said.startswith("first\nxxx") and said.endswith("xxx\nlast\n")
    assert "bytes left out" in said


def test_output_that_is_no_text_is_replaced(executor: AnsibleExecutor) -> None:
    assert execute(executor, "printf 'a\\377b\\303\\251'").values["stdout"] == "a\ufffdbé"


def test_a_role_tells_of_each_step_in_order(executor: AnsibleExecutor) -> None:
    results = deploy(executor, "web", extra_vars={"given": "x"})

    assert [(result.values["name"], result.status) for result in results] == [
        ("web : first of x", Status.OK),
        ("web : change something", Status.CHANGED),
        ("web : nothing to do", Status.SKIPPED),
        ("web : marked", Status.OK),
        ("web : afterwards", Status.OK),
    ]
    assert "invocation" not in results[1].values["return_data"]
    assert json.loads(results[1].values["return_data"])["cmd"] == ["true"]


def test_a_part_of_a_role_is_what_its_tags_mark(executor: AnsibleExecutor) -> None:
    assert [result.values["name"] for result in deploy(executor, "web", partial=["reconfig"])] == ["web : marked"]


def test_tags_that_no_step_has_are_no_success(executor: AnsibleExecutor) -> None:
    [result] = deploy(executor, "web", partial=["recnofig"])

    assert result.status == Status.FAILED
    assert result.values["message"] == "nothing was done: no step has one of the tags recnofig"


def test_a_step_that_breaks_ends_its_host_and_says_why(executor: AnsibleExecutor) -> None:
    results = deploy(executor, "broken", "web1", "web2")

    assert [result.status for result in results].count(Status.FAILED) == 2
    assert "never done" not in str(results)
    assert "it is broken" in results[-1].values["message"]


def test_failures_that_a_role_ignores_or_rescues_are_none(executor: AnsibleExecutor) -> None:
    results = deploy(executor, "forgiving")

    assert {result.status for result in results} == {Status.OK}
    messages = [result.values.get("message", "") for result in results]
    assert messages[0].startswith("failed, and the role ignores it: ")
    assert messages[1].startswith("failed, and the role has rescued it: ")


def test_what_a_role_does_not_log_is_not_told(executor: AnsibleExecutor) -> None:
    results = deploy(executor, "discreet", extra_vars={"password": "s3cret"})

    assert results[0].status == Status.CHANGED and "s3cret" not in str(results)


def test_hosts_that_an_order_names_and_the_inventory_does_not_are_told(executor: AnsibleExecutor) -> None:
    run = begin(executor, Operation.PING, "web1", "nobody", "localhost")

    assert read_all(run) == [] and run.error == "not in the inventory: nobody, localhost"


# What is wrong with the lab


def test_a_role_that_is_not_there_is_told_with_where_it_was_looked_for(executor: AnsibleExecutor, lab: Lab) -> None:
    error = error_of(executor, "nginx")

    assert error.startswith(f"there is no role nginx in {lab.playbooks}/roles") and "\n" not in error


def test_a_role_that_cannot_be_read_is_told_in_one_line(executor: AnsibleExecutor) -> None:
    error = error_of(executor, "malformed")

    assert "malformed/tasks/main.yml" in error and "\n" not in error


def test_without_the_play_for_roles_only_these_cannot_be_applied(
    own_lab: Lab, make: Callable[..., AnsibleExecutor]
) -> None:
    executor = make()
    (own_lab.playbooks / "_deploy.yml").unlink()

    with pytest.raises(Misconfigured, match=r"there is no .*/_deploy\.yml"):
        begin(executor, Operation.DEPLOY, role="web", partial=None, extra_vars={})
    assert execute(executor, "true").status == Status.CHANGED
    assert executor.check() == [f"playbooks: {own_lab.playbooks}/_deploy.yml cannot be read: No such file or directory"]


def test_a_check_says_all_that_is_missing(tmp_path: Path) -> None:
    executor = AnsibleExecutor({"workdir": str(tmp_path / "lab")}, Path("unused"))
    assert executor.check() == [f"workdir: there is no directory {tmp_path}/lab"]

    (tmp_path / "lab/playbooks").mkdir(parents=True)
    (tmp_path / "lab/playbooks/_deploy.yml").write_text("- hosts: all\n  tasks: []\n")
    (tmp_path / "lab/inventory").write_text("")
    play = tmp_path / "lab/playbooks/_deploy.yml"
    try:
        assert executor.check() == [
            f"playbooks: {play} does not use _targets",
            f"playbooks: {play} does not use _role",
            f"playbooks: there is no directory {tmp_path}/lab/playbooks/roles",
            f"inventory: there are no hosts in {tmp_path}/lab/inventory",
        ]
    finally:
        executor.close()


def test_an_inventory_that_is_missing_or_broken_is_told_in_one_line(
    own_lab: Lab, make: Callable[..., AnsibleExecutor], tmp_path: Path
) -> None:
    missing = make(inventory=str(tmp_path / "nowhere"))
    with pytest.raises(Failed, match=r"inventory: there is no .*/nowhere"):
        missing.hosts()
    with pytest.raises(Failed, match=r"inventory: there is no .*/nowhere"):
        begin(missing, Operation.PING)

    (own_lab.directory / "inventory").unlink()
    (own_lab.directory / "inventory").write_text("[lab\nweb1\n")
    broken = make()
    with pytest.raises(Failed, match=r"^inventory: .*Completely failed to parse inventory source") as raised:
        broken.hosts()
    assert "\n" not in str(raised.value) and "YAML parsing failed" in str(raised.value)
    assert broken.check() == [str(raised.value)]


def test_an_inventory_is_read_again_when_it_has_changed_and_otherwise_after_a_while(
    own_lab: Lab, make: Callable[..., AnsibleExecutor], tmp_path: Path
) -> None:
    log = tmp_path / "asked"
    inventory = own_lab.directory / "inventory"
    script = '#!/bin/sh\necho asked >> %s\necho \'{"_meta": {"hostvars": {}}, "lab": {"hosts": ["%s"]}}\'\n'
    inventory.write_text(script % (log, "one"))
    executor = make()
    assert executor.hosts().keys() == executor.hosts().keys() == {"one"}
    assert log.read_text().count("asked") == 1

    inventory.write_text(script % (log, "another"))
    assert executor.hosts().keys() == {"another"}

    impatient = make(inventory_interval=0.01)
    before = log.read_text().count("asked")
    until(lambda: impatient.hosts() and log.read_text().count("asked") > before + 1, "it is read again")


@pytest.mark.parametrize(
    ("options", "mistake"),
    [
        ({"forks": 3}, "forks: "),
        ({"concurrency": 0}, "concurrency: "),
        ({"environment": {"LD_PRELOAD": "x"}}, "environment.LD_PRELOAD"),
        ({"inventory": [""]}, "inventory.0: "),
        ({"inventory_interval": 0}, "inventory_interval: "),
    ],
)
def test_a_mistake_in_the_options_is_named(options: dict[str, Any], mistake: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        AnsibleExecutor(options, Path("unused"))
    assert str(raised.value).startswith(mistake) and "\n" not in str(raised.value)


# The lab's configuration


def test_settings_of_ansible_come_from_the_environment_and_from_ansible_cfg(
    own_lab: Lab, make: Callable[..., AnsibleExecutor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name / name / "tasks").mkdir(parents=True)
        (tmp_path / name / name / "tasks/main.yml").write_text("- ansible.builtin.debug:\n")

    assert deploy(make(environment={"ANSIBLE_ROLES_PATH": str(tmp_path / "one")}), "one")

    executor = make()
    assert "there is no role two" in error_of(executor, "two")
    (own_lab.directory / "ansible.cfg").write_text(f"[defaults]\nroles_path = {tmp_path}/two\n")
    assert deploy(executor, "two")

    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "three"))
    assert deploy(make(), "three")


def test_variables_beside_the_playbooks_hold_for_all_operations(
    own_lab: Lab, make: Callable[..., AnsibleExecutor]
) -> None:
    own_lab.write_inventory({"web1": {}}, {})
    (own_lab.playbooks / "group_vars").mkdir()
    (own_lab.playbooks / "group_vars/all.yml").write_text("ansible_connection: local\n")

    assert execute(make(), "true").status == Status.CHANGED


def test_variables_beside_the_inventory_hold(own_lab: Lab, make: Callable[..., AnsibleExecutor]) -> None:
    own_lab.write_inventory({"web1": {}}, {})
    (own_lab.directory / "host_vars").mkdir()
    (own_lab.directory / "host_vars/web1.yml").write_text("ansible_connection: local\ngiven: beside\n")

    assert deploy(make(), "web")[0].values["name"] == "web : first of beside"


def test_labctl_s_own_environment_is_not_handed_on(
    make: Callable[..., AnsibleExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABCTL_DATABASE_URL", "postgresql://s3cret")

    assert "s3cret" not in execute(make(), "env").values["stdout"]


def test_what_ansible_has_to_say_does_not_go_to_the_workers_output(
    own_lab: Lab, make: Callable[..., AnsibleExecutor], capfd: pytest.CaptureFixture[str]
) -> None:
    own_lab.write_role("noisy", "- ansible.builtin.debug:\n    msg: '{{ ansible_version }}'\n  action: x\n")
    executor = make()
    executor.hosts()
    execute(executor, "echo hello; echo hello >&2")
    error_of(executor, "noisy")
    deploy(executor, "broken")

    assert capfd.readouterr() == ("", "")


def test_an_ansible_that_cannot_be_started_is_told(make: Callable[..., AnsibleExecutor], own_lab: Lab) -> None:
    (own_lab.directory / "ansible.cfg").write_text("no section\n")
    with pytest.raises(ExecutorError, match=r"Ansible cannot be started: .*no section"):
        make().hosts()


def test_a_command_is_ended_on_its_host_when_its_time_is_up() -> None:
    program = (
        "from labctl.remote.executors.ansible_modules.labctl_execute import run; "
        "print(run('trap \"\" TERM HUP; echo hello; setsid sleep 600 & sleep 600', 0.3))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.stdout == "(124, 'hello\\n', '', False)\n" and done.stderr == ""


def of_module(program: str) -> str:
    start = "import os, signal, time; from labctl.remote.executors.ansible_modules import labctl_execute as module\n"
    done = subprocess.run(
        [sys.executable, "-c", start + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout


def test_what_a_command_runs_as_another_user_does_not_hold_up_its_end() -> None:
    program = """
kill = os.kill
theirs = []
def refuse(pid, number):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        if file.read() == b"sleep\\x00777\\x00":
            theirs.append(pid)
            raise PermissionError
    kill(pid, number)
os.kill = refuse
started = time.monotonic()
print(module.run("setsid sleep 777 & echo hello; sleep 600", 0.5))
print(time.monotonic() < started + 0.5 + module.PATIENCE)
kill(theirs[0], signal.SIGKILL)
print(len(theirs) < 10)
"""
    assert of_module(program) == "(124, 'hello\\n', '', False)\nTrue\nTrue\n"


def test_a_command_that_ignores_to_be_asked_is_ended_where_there_is_no_proc() -> None:
    program = """
module.PROC = "/nowhere"
code, pid, _, _ = module.run("trap '' TERM; echo $$; exec sleep 600", 0.5)
try:
    os.killpg(int(pid), signal.SIGKILL)
except ProcessLookupError:
    print(code, "nothing is left")
"""
    assert of_module(program) == "124 nothing is left\n"
