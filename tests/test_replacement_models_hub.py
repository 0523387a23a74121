"""Hub ids: how they are read, that the cache is honoured, and that nothing else downloads."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from replacement_models import ModelError, ReplacementModel, load_transcoder, save_transcoder
from replacement_models.formats import content_hash
from replacement_models.hub import HubId, folder_of
from tests.dictionaries import assert_same
from tests.random_models import language_model, transcoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", HubId("owner/name", "", None)),
        ("owner/name@v1", HubId("owner/name", "", "v1")),
        ("owner/name/sub", HubId("owner/name", "sub", None)),
        ("owner/name/sub/folder@v1", HubId("owner/name", "sub/folder", "v1")),
        ("owner/name//sub/folder@v1", HubId("owner/name", "sub/folder", "v1")),
        ("owner/name/", HubId("owner/name", "", None)),
        ("owner/name@refs/pr/3", HubId("owner/name", "", "refs/pr/3")),
        ("owner/name@", HubId("owner/name", "", None)),
    ],
)
def test_a_hub_id_is_split(name: str, expected: HubId):
    assert HubId.parse(name) == expected


@pytest.mark.parametrize(
    "name", ["", "name", "/abs/name", "./rel/name", "~/x/y", "owner/../x", "owner/name/../../x"]
)
def test_what_is_no_hub_id_is_refused_before_anything_is_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match="no such folder"):
        HubId.parse(name)


def unreachable(*_: Any, **__: Any) -> Any:
    raise AssertionError("reached for the network")


class Cache:
    """A hub cache on disk, as huggingface_hub lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, repo: str, source: Path, commit: str, ref: str, inside: str = "") -> None:
        """A snapshot of `source`: links into `blobs`, found through a ref."""
        folder = self.root / f"models--{repo.replace('/', '--')}"
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
        for file in source.iterdir():
            blob = folder / "blobs" / f"{commit[:8]}-{inside.replace('/', '-')}-{file.name}"
            blob.write_bytes(file.read_bytes())
            link = folder / "snapshots" / commit / inside / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """An empty cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", unreachable)
    return Cache(tmp_path / "hub")


def saved(folder: Path, seed: int = 1, format: str = "tracer") -> Path:
    return save_transcoder(transcoder("per_layer", seed=seed), folder, format)


def test_a_set_loads_from_the_cache_at_the_default_revision(tmp_path: Path, cache: Cache):
    source = saved(tmp_path / "set")
    cache.add("owner/name", source, COMMIT, "main")
    assert_same(load_transcoder("owner/name"), transcoder("per_layer"))
    assert folder_of("owner/name")[1] == COMMIT
    assert content_hash("owner/name") == content_hash(source)


def test_a_revision_and_a_subfolder_are_honoured(tmp_path: Path, cache: Cache):
    cache.add("owner/name", saved(tmp_path / "new", seed=1), COMMIT, "main", "plt/wide")
    cache.add("owner/name", saved(tmp_path / "old", seed=2), OTHER, "v1", "plt/wide")
    for name, seed in (
        ("owner/name/plt/wide", 1),
        ("owner/name//plt/wide@main", 1),
        ("owner/name/plt/wide@v1", 2),
        (f"owner/name//plt/wide@{OTHER}", 2),
    ):
        assert_same(load_transcoder(name, lazy=True), transcoder("per_layer", seed=seed))


def test_circuit_tracers_listed_files_load_from_the_cache(tmp_path: Path, cache: Cache):
    source = saved(tmp_path / "set", format="circuit-tracer")
    config = yaml.safe_load((source / "config.yaml").read_text())
    config["transcoders"] = [
        "layer_0.safetensors",
        "hf://other/weights/deep/layer_1.safetensors?revision=v1",
        "hf://other/weights/deep/layer_2.safetensors?revision=v1",
    ]
    cache.add("other/weights", source, OTHER, "v1", "deep")
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    for index in (1, 2):
        (source / f"layer_{index}.safetensors").unlink()
    cache.add("owner/name", source, COMMIT, "main")
    assert_same(load_transcoder("owner/name"), transcoder("per_layer"))
    before = content_hash("owner/name")
    blob = (tmp_path / "hub" / "models--other--weights" / "snapshots" / OTHER / "deep").resolve()
    weights = (blob / "layer_2.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert content_hash("owner/name") != before


def test_a_whole_model_loads_from_the_cache(cache: Cache):
    golden = Path(__file__).parent / "data" / "golden" / "llama_gqa_plt"
    cache.add("owner/model", golden / "model", COMMIT, "main")
    cache.add("owner/set", golden / "transcoders", OTHER, "main")
    model = ReplacementModel.load("owner/model", "owner/set@main")
    assert (model.name, model.revision) == ("owner/model", COMMIT)
    assert model.transcoder_name == "owner/set@main"
    assert model.transcoder_hash == content_hash(golden / "transcoders")
    assert len(model.record("0 1 2").tokens) >= 1


@pytest.mark.parametrize(
    "name", ["owner/absent", "owner/name@nowhere", "owner/absent/sub@v1", "owner/bad name"]
)
def test_what_the_cache_lacks_is_one_line_offline(tmp_path: Path, cache: Cache, name: str):
    cache.add("owner/name", saved(tmp_path / "set"), COMMIT, "main")
    with pytest.raises(ModelError, match="could not be loaded from the hub") as error:
        load_transcoder(name)
    assert "\n" not in str(error.value)
    assert "HF_TOKEN" in str(error.value)


def test_a_subfolder_the_repository_lacks_is_named(tmp_path: Path, cache: Cache):
    cache.add("owner/name", saved(tmp_path / "set"), COMMIT, "main")
    with pytest.raises(ModelError, match="the repository has no folder 'plt'"):
        load_transcoder("owner/name/plt")


def test_only_weights_and_configurations_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def noted(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", noted)
    with pytest.raises(ModelError, match="no network"):
        load_transcoder("owner/name/plt@v1")
    assert asked == {
        "repo": "owner/name",
        "revision": "v1",
        "allow_patterns": [f"plt/*.{kind}" for kind in ("safetensors", "npz", "json", "yaml")],
        "ignore_patterns": ["plt/features/*"],
    }
    with pytest.raises(ModelError, match="no network"):
        folder_of("owner/name/deep")
    assert asked["allow_patterns"] == ["deep/*"]
    with pytest.raises(ModelError, match="no network"):
        folder_of("owner/name")
    assert asked["allow_patterns"] is None


def test_a_repository_of_hundreds_of_gigabytes_is_never_fetched_whole(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for name in ("google/gemma-scope-2b-pt-transcoders", "google/gemma-scope-2-1b-pt@main"):
        with pytest.raises(ModelError, match="many dictionaries a layer"):
            load_transcoder(name)


def test_a_local_folder_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "owner" / "name@v1")
    assert_same(load_transcoder("owner/name@v1"), transcoder("per_layer"))
    assert folder_of("owner/name@v1") == (Path("owner/name@v1"), "")


def test_a_local_load_reaches_for_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.socket.connect", unreachable)
    golden = Path(__file__).parent / "data" / "golden" / "gpt2_plt"
    model = ReplacementModel.load(golden / "model", golden / "transcoders")
    assert torch.isfinite(model.record([1, 2, 3]).logits).all()
    assert model.revision == ""


def test_the_environment_switches_the_network_off(tmp_path: Path):
    script = (
        "import socket, sys; from replacement_models import load_transcoder, ModelError\n"
        "def no(*a, **k): sys.exit('reached for the network')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        "try: load_transcoder('owner/name')\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("owner/name: is no local folder and could not be loaded")
    assert done.stdout.count("\n") == 1


def test_loading_by_hub_ids_never_asks_for_a_whole_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    language_model("gpt2").save_pretrained(tmp_path / "model")
    save_transcoder(transcoder(), tmp_path / "set")
    asked: list[tuple[str, list[str] | None]] = []

    def local(repo: str, allow_patterns: list[str] | None = None, **_: object) -> str:
        asked.append((repo, allow_patterns))
        return str(tmp_path / repo.partition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", local)
    ReplacementModel.load("owner/model", "owner/set", dtype="float64")
    assert {repo for repo, _ in asked} == {"owner/model", "owner/set"}
    assert all(patterns for _, patterns in asked)
