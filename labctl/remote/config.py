"""What the settings say of the executor and of plugins: every mistake in it, and what the runner and the web use.

A plugin comes from an entry point, or from a file in the directory ``remote_plugins``: each class there that is an
executor or a task is one, by the name that its attribute ``name`` says, or else that of the module, or else the file's.
Files are read once in the life of a process.
"""

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from labctl import plugins
from labctl.errors import Invalid
from labctl.remote.executor import Executor, Misconfigured
from labctl.remote.task import Task
from labctl.settings import Settings

EXECUTORS, TASKS = "labctl.executors", "labctl.tasks"


@dataclass
class Found:
    """What a directory of plugins holds."""

    executors: dict[str, type[Executor]] = field(default_factory=dict)
    tasks: dict[str, type[Task]] = field(default_factory=dict)
    #: Why files or what is in them cannot be used.
    mistakes: list[str] = field(default_factory=list)


def check(settings: Settings) -> list[str]:
    """List every mistake, a line each: those that end a process, and plugins that cannot be used."""
    return [*fatal(settings), *broken(settings)]


def fatal(settings: Settings) -> list[str]:
    """List what keeps a process from starting: mistakes in the settings themselves."""
    mistakes = []
    if settings.remote_plugins and not Path(settings.remote_plugins).is_dir():
        mistakes.append(f"remote_plugins: there is no directory {settings.remote_plugins}")
    lines, _ = _load_executor(settings)
    return mistakes + [f"executor.{line}" for line in lines]


def broken(settings: Settings) -> list[str]:
    """List plugins that cannot be used; the others can."""
    mistakes, _ = _load_tasks(settings)
    return [*_found(settings).mistakes, *mistakes]


def executor(settings: Settings) -> Executor:
    """Make the executor; raises :class:`Misconfigured` with every mistake."""
    lines, made = _load_executor(settings)
    if made is None or lines:
        raise Misconfigured("\n".join(f"executor.{line}" for line in lines))
    return made


def tasks(settings: Settings) -> Mapping[str, type[Task]]:
    """Give the tasks there are by name, those that can be used."""
    _, found = _load_tasks(settings)
    return found


def _load_executor(settings: Settings) -> tuple[list[str], Executor | None]:
    options = dict(settings.executor)
    name = options.pop("plugin", None)
    if not isinstance(name, str):
        return ["plugin: must say which executor it is"], None
    plugin = _found(settings).executors.get(name)
    if plugin is None:
        try:
            plugin = plugins.load(EXECUTORS, name)
        except Invalid as error:
            there = "".join(f"\nplugin: {line}" for line in _found(settings).mistakes)
            return [*f"plugin: {error}{there}".splitlines()], None
        except Exception as error:
            return [f"plugin: {name} cannot be loaded: {_describe(error)}"], None
    try:
        return [], plugin(options, Path(settings.home).absolute() / "remote")
    except Misconfigured as error:
        return str(error).splitlines(), None


def _load_tasks(settings: Settings) -> tuple[list[str], dict[str, type[Task]]]:
    mistakes = []
    tasks: dict[str, type[Task]] = dict(_found(settings).tasks)
    for point in entry_points(group=TASKS):
        try:
            loaded = point.load()
        except Exception as error:
            mistakes.append(f"the task {point.name} cannot be loaded: {_describe(error)}")
            continue
        if not (inspect.isclass(loaded) and issubclass(loaded, Task)):
            mistakes.append(f"the task {point.name} cannot be used: {point.value} is no task")
        else:
            tasks[point.name] = loaded
    return mistakes, dict(sorted(tasks.items()))


def _found(settings: Settings) -> Found:
    return _read(str(Path(settings.remote_plugins).absolute())) if settings.remote_plugins else Found()


@cache
def _read(directory: str) -> Found:
    found = Found()
    if not Path(directory).is_dir():
        return found
    for file in sorted(Path(directory).glob("[!_.]*.py")):
        try:
            module = _import(file)
            for plugin in _plugins(module):
                _add(found, module, plugin, file)
        # Whatever a file does, it is not the end of the others, nor of the process.
        except (Exception, SystemExit) as error:
            found.mistakes.append(f"remote_plugins: {file.name} cannot be loaded: {_describe(error)}")
    return found


def _import(file: Path) -> Any:
    name = f"labctl_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # As the import system does it: dataclasses and pickle look modules up here.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _plugins(module: Any) -> list[type[Executor] | type[Task]]:
    """List the classes that a file defines itself and that can be used as they are."""
    return [
        one
        for one in vars(module).values()
        if inspect.isclass(one)
        and one.__module__ == module.__name__
        and issubclass(one, Executor | Task)
        and not one.__name__.startswith("_")
    ]


def _add(found: Found, module: Any, plugin: type[Executor] | type[Task], file: Path) -> None:
    name = vars(plugin).get("name", getattr(module, "name", file.stem))
    where = f"remote_plugins: {file.name}: {plugin.__name__}"
    known: dict[str, Any] = found.tasks if issubclass(plugin, Task) else found.executors
    group = TASKS if issubclass(plugin, Task) else EXECUTORS
    if not isinstance(name, str) or not name:
        found.mistakes.append(f"{where} cannot be used: its name must be a text")
    elif inspect.isabstract(plugin):
        missing = ", ".join(sorted(plugin.__abstractmethods__))
        found.mistakes.append(f"{where} cannot be used: it does not define {missing}")
    elif issubclass(plugin, Task) and not isinstance(getattr(plugin, "type", None), str):
        found.mistakes.append(f"{where} cannot be used: its attribute type must be a text")
    elif name in known or name in plugins.installed(group):
        found.mistakes.append(f"{where} cannot be used: there is another one called {name}")
    else:
        known[name] = plugin


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]
