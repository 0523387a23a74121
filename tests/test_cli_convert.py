"""`tracer convert`: a transcoder in another format, from the command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from replacement_models import load_transcoder
from replacement_models.formats import WRITABLE
from tests.dictionaries import assert_same
from tracer.commands import main
from tracer.commands.convert import convert

GOLDEN = Path(__file__).parent / "data" / "golden"
SOURCE = GOLDEN / "llama_gqa_plt" / "transcoders"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_convert_writes_our_format_and_says_where(tmp_path: Path):
    result = run(SOURCE, tmp_path / "ours")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Saved {tmp_path / 'ours'}\n"
    assert_same(load_transcoder(tmp_path / "ours"), load_transcoder(SOURCE))


def test_convert_writes_the_format_that_is_named_and_back(tmp_path: Path):
    assert run(SOURCE, tmp_path / "theirs", "--format", "saelens").exit_code == 0
    assert (tmp_path / "theirs" / "layer_0" / "sae_weights.safetensors").is_file()
    there = tmp_path / "back"
    assert run(tmp_path / "theirs", there, "--format", "circuit-tracer").exit_code == 0
    assert_same(load_transcoder(there), load_transcoder(SOURCE))


def test_the_command_offers_every_format_there_is_a_writer_for():
    [offered] = [option.type for option in convert.params if option.name == "format"]
    assert set(offered.choices) == set(WRITABLE)


@pytest.mark.parametrize(
    ("source", "format", "message"),
    [
        ("nothing", "tracer", "no such folder"),
        (str(GOLDEN / "llama_gqa_plt" / "model"), "tracer", "no transcoder in a known format"),
        (str(GOLDEN / "llama_gqa_clt" / "transcoders"), "saelens", "cannot hold kind cross_layer"),
        (str(SOURCE), "crosslayer-coding", "cannot hold kind per_layer"),
        (str(SOURCE), "pickle", "'pickle' is not one of"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_exit_code_2(
    source: str, format: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = run(source, tmp_path / "there", "--format", format)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    result = run(SOURCE, tmp_path)
    assert result.exit_code == 2
    assert "exists and is not an empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
