"""Parts of the user's own: the files, modules and entry points that register them, loaded before choices are
looked up.

``import=`` on the command line is the option ``imports`` of the configuration: a list of files, absolute, and
of names of modules. A run folder keeps it, so that the run can be resumed and repeated.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gnewton.errors import InputError, first_line
from gnewton.experiment.overrides import Override, expand_home, forget_options
from gnewton.experiment.places import config_folder
from gnewton.experiment.schema import REGISTRIES, store_schema
from gnewton.options import quoted
from gnewton.plugins import PARTS, registering
from gnewton.registry import OWN_PARTS, OwnPart, Registry

OPTION = "imports"
"""The name of ``import=`` in a configuration, where a keyword of Python cannot be used."""

WITHIN = {
    "schedule": "constant",
    "direction": "adam",
    "averaging": "exponential",
    "controller": "constant",
}
"""The default choices of the groups within an optimizer, of those that an own optimizer has."""


_loaded: dict[str, list[OwnPart]] = {}
"""The parts by the import that registered them; those of entry points under the empty name."""


def absolute_imports(text: str) -> list[str]:
    """The entries of ``import=text``, a file, a module or a list of them in brackets; files absolute.

    Raises:
        InputError: for an empty entry, or the home folder of a user that there is not.
    """
    listed = re.fullmatch(r"\s*\[(.*)\]\s*", text, re.DOTALL)
    if listed is None and "," in text:
        raise InputError(f"import={text}: one value is allowed; for several write import=[{text}]")
    entries = [entry.strip().strip("'\"") for entry in (listed[1] if listed else text).split(",")]
    if entries == [""] and listed:
        return []
    if not all(entries):
        raise InputError(f"import={text}: must be a Python file, the name of a module, or a list of them")
    return [_absolute(entry) if _is_file(entry) else entry for entry in entries]


def _absolute(entry: str) -> str:
    """The one absolute path of a file, so that two ways to write it load it once; links to files are kept."""
    try:
        file = Path(expand_home(entry))
    except InputError as error:
        raise InputError(f"import={error}") from None
    return str(file.parent.resolve() / file.name)


def imports_of(overrides: Sequence[Override]) -> list[str] | None:
    """The imports that overrides set; None where they set none."""
    texts = [override.value for override in overrides if override.key in (OPTION, "import")]
    return absolute_imports(texts[-1] or "") if texts else None


def imports_override(entries: Iterable[str]) -> str:
    """The override that sets these imports."""
    return f"{OPTION}=[{','.join(map(quoted, entries))}]"


def use_imports(entries: Sequence[str]) -> None:
    """Load own parts, each once. What other imports registered before is forgotten.

    Args:
        entries: absolute paths of files, and names of modules.

    Raises:
        InputError: for a file that is missing, code that raises, and a choice that there is already.
    """
    for key in [key for key in _loaded if key and key not in entries]:
        _forget(key)
    for entry in entries:
        if entry not in _loaded:
            _collect(entry, f"import={entry}", partial(_execute, entry))


def use_saved_imports(config: Path, argument: str, imports: Sequence[str] | None) -> list[str]:
    """Load the own parts of a run.

    Args:
        config: its config.yaml.
        argument: what named the run, for messages.
        imports: those of the command line. One replaces that of the same file name, and any of them a
            file that no longer exists; None: the run's own.

    Returns:
        what was loaded, the ``imports`` of the run from now on.

    Raises:
        InputError: if a file is missing, or see :func:`use_imports`.
    """
    saved: list[str] = []
    with suppress(OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        saved = [str(entry) for entry in yaml.safe_load(config.read_text(encoding="utf-8")).get(OPTION) or []]
    entries = moved_imports(saved, argument, imports)
    use_imports(entries)
    return entries


def moved_imports(saved: Sequence[str], argument: str, imports: Sequence[str] | None) -> list[str]:
    """The imports of a run or a sweep, after files of it may have moved.

    Args:
        saved: the imports it was begun with.
        argument, imports: see :func:`use_saved_imports`.

    Raises:
        InputError: if a file is missing and none is given.
    """
    gone = [entry for entry in saved if _is_file(entry) and not Path(entry).is_file()]
    if imports is None and gone:
        raise InputError(f"{argument}: its import={gone[0]} does not exist; give import=FILE")
    names = {Path(entry).name for entry in imports or ()}
    kept = [entry for entry in saved if entry not in gone and Path(entry).name not in names]
    return [*kept, *(imports or ())]


def use_entry_points() -> list[str]:
    """Load the parts of installed packages, once in a process.

    Returns:
        a line for each entry point that was left out because it raised.
    """
    if "" in _loaded:
        return []
    _loaded[""], problems = [], []
    for group, registry in PARTS.items():
        for point in entry_points(group=group):
            try:
                argument = f"entry point {point.name} = {point.value} ({group})"
                _collect("", argument, partial(_execute_point, registry, point))
            except InputError as error:  # noqa: PERF203
                problems.append(f"{error}; it is left out")
    return problems


def digests(entries: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the imported files by their names (paths where two share one), for the record of a run."""
    files = [file for entry in entries if _is_file(entry) and (file := Path(entry)).is_file()]
    names = [file.name for file in files]
    return {
        file.name if names.count(file.name) == 1 else str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def forget_all() -> None:
    """Forget every part that is not of this package."""
    for key in list(_loaded):
        _forget(key)


def _is_file(entry: str) -> bool:
    return entry.endswith(".py") or "/" in entry or "\\" in entry


def _collect(key: str, argument: str, execute: Callable[[], None]) -> None:
    """Run code that registers parts, and make what it registered choices."""
    before = {registry.kind: set(registry.names()) for registry in REGISTRIES}
    parts: list[OwnPart] = []
    whole = False
    try:
        try:
            execute()
        finally:
            for registry in REGISTRIES:
                new = set(registry.names()) - before[registry.kind]
                parts += [OwnPart(registry, name, registry[name]) for name in sorted(new)]
            OWN_PARTS.extend(parts)
            forget_options()
        for part in parts:
            _make_choice(part)
        _loaded.setdefault(key, []).extend(parts)
        whole = True
    except InputError as error:
        raise InputError(f"{argument}: {_line_of(error, argument)}{error}") from error
    except (Exception, SystemExit) as error:
        reason = first_line(error, with_type=True)
        raise InputError(f"{argument}: {_line_of(error, argument)}{reason}") from error
    finally:
        if not whole:
            _unregister(parts)


def _execute(entry: str) -> None:
    """Import a file or a module."""
    if not _is_file(entry):
        try:
            importlib.import_module(entry)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{entry}.".startswith(f"{error.name}."):
                raise
            raise InputError(
                "there is no such module in the Python path; for a file write import=FILE.py"
            ) from None
        return
    file = Path(entry)
    if not file.is_file():
        raise InputError("there is no such file")
    name = f"imported_{file.stem}_{hashlib.sha256(entry.encode()).hexdigest()[:8]}"
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # for modules beside it
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError("must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise


def _execute_point(registry: Registry, point: EntryPoint) -> None:
    """Load an entry point: a recipe, or a module that registers some."""
    target = point.load()
    if isinstance(target, type) and target not in dict(registry.items()).values():
        registering(registry, point.name)(target)


def _line_of(error: BaseException, argument: str) -> str:
    """``line 12: `` for the last line of the imported file that the error went through; empty for none."""
    file = argument.partition("import=")[2]
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]}: " if lines else ""


def _make_choice(part: OwnPart) -> None:
    """Let Hydra know a part as a choice of its group, without a YAML file.

    Raises:
        InputError: if there is a file of this name, or an option has a type that configurations cannot hold.
    """
    kind, name = part.registry.kind, part.name
    if (config_folder() / kind / f"{name}.yaml").is_file():
        raise InputError(f"{kind}={name}: there is a choice of this name already")
    try:
        OmegaConf.structured(part.recipe)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(f"{kind}={name}: {first_line(error)}") from error
    store_schema(part.registry, name, part.recipe)
    names = {entry.name for entry in fields(part.recipe)}
    within = [{group: choice} for group, choice in WITHIN.items() if kind == "optimizer" and group in names]
    ConfigStore.instance().store(
        group=kind,
        name=name,
        node={"defaults": [f"/schema/{kind}/{name}@_here_", *within, "_self_"], "name": name},
    )


def _forget(key: str) -> None:
    """Unregister the parts of one import."""
    _unregister(_loaded.pop(key))
    if key and not _is_file(key):
        sys.modules.pop(key, None)  # to be run again


def _unregister(parts: Sequence[OwnPart]) -> None:
    """Take parts out of the registries and out of the store of Hydra."""
    for part in parts:
        part.registry.forget(part.name)
        OWN_PARTS.remove(part)
        for group in (part.registry.kind, f"schema/{part.registry.kind}", f"recipe/{part.registry.kind}"):
            node = ConfigStore.instance().repo
            for step in group.split("/"):
                node = node.get(step, {})
            node.pop(f"{part.name}.yaml", None)
    forget_options()
