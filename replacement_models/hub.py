"""The only place that can download: an explicit load of a named Hugging Face hub id."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from replacement_models.errors import ModelError


@dataclass(frozen=True)
class HubId:
    """A folder of a hub repository: `owner/name[/subfolder][@revision]`; `//` also parts it."""

    repo: str
    subfolder: str
    revision: str | None

    @classmethod
    def parse(cls, name: str) -> "HubId":
        """Split a hub id.

        Raises:
            ModelError: it has not that form.
        """
        address, _, revision = name.partition("@")
        parts = [part for part in address.split("/") if part]
        leads_away = address.startswith((".", "/", "~")) or ".." in parts or "\\" in address
        if len(parts) < 2 or leads_away:
            raise ModelError(
                f"{name}: no such folder (a hub id would be owner/name[/subfolder][@revision])"
            )
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def download(
    repo: str,
    revision: str | None,
    patterns: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
) -> Path:
    """Folder of a hub repository in the local cache, downloaded where the cache lacks it.

    Honours HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE.

    Args:
        repo: `owner/name`.
        revision: branch, tag or commit; None is the default branch.
        patterns: files to fetch, shell-style; None is all.
        without: files not to fetch, shell-style.

    Raises:
        ModelError: no such repository, no access, no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=None if patterns is None else list(patterns),
                ignore_patterns=None if without is None else list(without),
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{repo}: is no local folder and could not be loaded from the hub{at} ({reason}); "
            "check the name, the network, and HF_TOKEN for gated repositories"
        ) from error


def local_path(name: str | Path) -> Path:
    """A path with `~` and `~somebody` spelled out.

    Raises:
        ModelError: nobody is called so.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{name}: no such folder ({error})") from error


def folder_of(
    name: str, patterns: Sequence[str] | None = None, without: Sequence[str] | None = None
) -> tuple[Path, str]:
    """Local folder behind a name, and the revision it stands at ("" for a local folder).

    Args:
        name: a folder, or a hub id `owner/name[/subfolder][@revision]`.
        patterns: files to fetch from a hub id, shell-style, relative to its subfolder.
        without: files not to fetch, likewise.

    Raises:
        ModelError: neither a folder nor a loadable hub id.
    """
    path = local_path(name)
    if path.is_dir():
        return path, ""
    if path.exists():
        raise ModelError(f"{name}: is a file, expected a folder or a hub id owner/name")
    hub = HubId.parse(name)
    inside = f"{hub.subfolder}/" if hub.subfolder else ""
    wanted = None if patterns is None and not inside else [inside + p for p in patterns or ["*"]]
    root = download(
        hub.repo, hub.revision, wanted, None if without is None else [inside + p for p in without]
    )
    folder = root / hub.subfolder
    if not folder.is_dir():
        raise ModelError(f"{name}: the repository has no folder {hub.subfolder!r}")
    return folder, root.name
