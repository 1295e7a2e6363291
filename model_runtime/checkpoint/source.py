"""Where a checkpoint lies on this machine: a source as a user writes it enters, a folder leaves.

Nothing is downloaded: whoever wants hundreds of gigabytes fetched says so to a tool made for it.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from v32.model_runtime.errors import CheckpointError

_EMBEDDED_PACKAGE = "v32.examples.tiny_v32"
_REPO_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?", re.ASCII)


def resolve_source(source: str | Path | None = None) -> Path:
    """The folder of a checkpoint.

    `source` is None (the embedded tiny checkpoint), a folder in Hugging Face layout, or the id of a repository in the
    local Hugging Face cache, with `@revision` where it is not `main`. An existing folder wins over a repository.
    """
    if source is None:
        return _checked(embedded_checkpoint(), "the embedded checkpoint; reinstall v32")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(folder, "a folder in Hugging Face layout")
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; give the folder that holds it, in Hugging Face layout")
    if "://" in str(source):
        raise CheckpointError(f"{source} is a server, not a checkpoint; here a folder or a repository id is needed")
    if isinstance(source, str) and _REPO_ID.fullmatch(source):
        return _checked(_cached_snapshot(source), "a complete snapshot; download it again")
    raise CheckpointError(
        f"no folder {source}; give a folder in Hugging Face layout or a cached repository id (org/name)"
    )


def embedded_checkpoint() -> Path:
    """The folder of the tiny checkpoint that comes with the package."""
    spec = find_spec(_EMBEDDED_PACKAGE)
    # Not importlib.resources: it refuses folders without an __init__.py in editable installations.
    homes = [Path(home) for home in (spec.submodule_search_locations if spec else None) or ()]
    if found := [home / "checkpoint" for home in homes if home.is_dir()]:
        return found[0]
    raise CheckpointError(f"{_EMBEDDED_PACKAGE} is not installed; reinstall v32 or name a checkpoint")


def repository_id(folder: Path) -> str | None:
    """`org/name` of a folder inside a Hugging Face cache (models--org--name/snapshots/<commit>), else None."""
    for part in reversed(folder.absolute().parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return None


def hub_cache() -> Path:
    """The local Hugging Face cache, found as its own tools find it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    default_home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return (Path(os.environ.get("HF_HOME") or default_home) / "hub").expanduser()


def _cached_snapshot(repo: str) -> Path:
    repo_id, _, revision = repo.partition("@")
    stored = hub_cache() / f"models--{repo_id.replace('/', '--')}"
    remedy = f"fetch it with `hf download {repo_id}`, or give the folder it lies in"
    if not (stored / "snapshots").is_dir():
        raise CheckpointError(f"{repo_id} is neither a folder nor in the Hugging Face cache {hub_cache()}; {remedy}")
    reference = stored / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    if commit:
        snapshot = stored / "snapshots" / commit
        if snapshot.is_dir():
            return snapshot
        raise CheckpointError(f"{repo_id} has no snapshot {commit} in {stored}; {remedy}")
    snapshots = list((stored / "snapshots").iterdir())
    if len(snapshots) != 1:
        raise CheckpointError(f"{stored} has {len(snapshots)} snapshots and no refs/main; name one: {repo_id}@<commit>")
    return snapshots[0]


def _checked(folder: Path, what: str) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; expected {what}")
    return folder
