"""Where the store of a model's dictionary stands: beside the dictionary's folder, or as named."""

from pathlib import Path

from replacement_models import ReplacementModel
from tracer.errors import TraceError
from tracer.features.dictionary_hash import dictionary_hash
from tracer.features.store import FeatureStore
from tracer.features.tables import ABOUT

SUFFIX = ".features"
"""What follows the name of a dictionary's folder (of the model's, for its own neurons)."""


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
        store = FeatureStore.load(path)
        if store.about.get("dictionary_hash") != dictionary_hash(model):
            return None, f"{path.name}: belongs to another dictionary; its labels are not used"
        return store, None
    except TraceError as error:
        return None, str(error)
