"""Where the store of a model's dictionary stands: beside the dictionary's folder, or as named."""

from pathlib import Path
from weakref import WeakKeyDictionary

from replacement_models import ReplacementModel
from tracer.errors import TraceError
from tracer.features.dictionary_hash import dictionary_hash
from tracer.features.labels import own, table
from tracer.features.store import FeatureStore
from tracer.features.tables import ABOUT

SUFFIX = ".features"
"""What follows the name of a dictionary's folder (of the model's, for its own neurons)."""
Stamp = tuple[tuple[str, int, int], ...]
"""Files that decide about labels, with their times and sizes."""

_OPENED: WeakKeyDictionary[ReplacementModel, tuple[Path, Stamp, FeatureStore]] = WeakKeyDictionary()
"""By model, the store that was last found beside its dictionary: its tables stay in memory."""


def store_of(
    model: ReplacementModel, named: FeatureStore | str | Path | None = None
) -> tuple[FeatureStore | None, str | None]:
    """The store to take labels from.

    Args:
        model: with its dictionary.
        named: a store, or its folder; None looks beside the dictionary's folder.

    Returns:
        The store, None where there is none; and why one that stands there is not used, in a line.

    Raises:
        TraceError: what is named is no store, or another dictionary's.
    """
    if named is not None:
        store = named if isinstance(named, FeatureStore) else FeatureStore.load(named)
        store.check(model)
        return store, None
    folder = model.dictionary_folder
    path = None if folder is None else folder.with_name(f"{folder.name}{SUFFIX}")
    if path is None or not (path / ABOUT).is_file():
        return None, None
    try:
        stamp = _stamp(path)
        opened = _OPENED.get(model)
        if opened is not None and opened[:2] == (path, stamp):
            return opened[2], None
        store = FeatureStore.load(path)
        if store.about.get("dictionary_hash") != dictionary_hash(model):
            return None, f"{path.name}: belongs to another dictionary; its labels are not used"
        _OPENED[model] = path, stamp, store
        return store, None
    except TraceError as error:
        return None, str(error)


def _stamp(path: Path) -> Stamp:
    files = (file for name in (ABOUT, table.FILE, own.FILE) if (file := path / name).is_file())
    found = ((file.name, file.stat()) for file in files)
    return tuple((name, about.st_mtime_ns, about.st_size) for name, about in found)
