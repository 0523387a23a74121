"""Transcoder file formats, one module each behind the contract of `contract.py`.

Names are imported at first use, so that `formats.names` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replacement_models.formats.files import (
        FORMATS,
        WRITABLE,
        content_hash,
        convert,
        load_transcoder,
        save_transcoder,
        transcoder_folder,
    )

__all__ = [
    "FORMATS",
    "WRITABLE",
    "content_hash",
    "convert",
    "load_transcoder",
    "save_transcoder",
    "transcoder_folder",
]

if not TYPE_CHECKING:  # a type checker must go on refusing names that are not there

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.files"), name)
