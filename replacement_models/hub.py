"""The only place that can download: an explicit load of a named Hugging Face hub id."""

from collections.abc import Sequence
from pathlib import Path

from replacement_models.errors import ModelError


def download(repo: str, revision: str | None, patterns: Sequence[str] | None = None) -> Path:
    """Folder of a hub repository in the local cache, downloaded where the cache lacks it.

    Honours HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE.

    Args:
        repo: `owner/name`.
        revision: branch, tag or commit; None is the default branch.
        patterns: files to fetch, shell-style; None is all.

    Raises:
        ModelError: no such repository, no access, no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=None if patterns is None else list(patterns)
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{repo}: is no local folder and could not be loaded from the hub ({reason}); "
            "check the name, the network, and HF_TOKEN for gated repositories"
        ) from error


def folder_of(name: str, patterns: Sequence[str] | None = None) -> tuple[Path, str]:
    """Local folder behind a name, and the revision it stands at ("" for a local folder).

    Args:
        name: a folder, or a hub id `owner/name[//subfolder][@revision]`.
        patterns: files to fetch from a hub id.

    Raises:
        ModelError: neither a folder nor a loadable hub id.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path, ""
    if path.exists():
        raise ModelError(f"{name}: is a file, expected a folder or a hub id owner/name")
    address, _, revision = name.partition("@")
    repo, _, subfolder = address.partition("//")
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise ModelError(f"{name}: no such folder (a hub id would have the form owner/name)")
    wanted = patterns if not subfolder else [f"{subfolder}/*"]
    root = download(repo, revision or None, wanted)
    folder = (root / subfolder).resolve() if subfolder else root
    if not folder.is_dir() or (subfolder and not folder.is_relative_to(root.resolve())):
        raise ModelError(f"{name}: the repository has no folder {subfolder!r}")
    return folder, root.name
