"""`benchmarks/gpu.py` without a GPU: it refuses in one line, and every part of it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from benchmarks import gpu

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_device_it_says_so_in_one_line():
    call = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "torch finds no CUDA device here; run it where there is one, or try its parts with "
        "--device cpu --quick"
    )
    assert "Traceback" not in done.stderr


def test_every_part_runs_on_tiny_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "found.json"
    small = GPT2Config(n_positions=16, n_layer=2, n_head=2, n_embd=32, vocab_size=gpu.VOCABULARY)
    monkeypatch.setattr(gpu, "config", lambda shape, layers: small)
    monkeypatch.setattr(gpu, "SHAPES", gpu.SHAPES[:2])
    monkeypatch.setattr(gpu, "EQUAL", gpu.EQUAL[1:])
    monkeypatch.setattr(gpu, "LONG", gpu.LONG[:1])
    arguments = ["gpu", "--device", "cpu", "--quick", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    gpu.main()
    found = json.loads(out.read_text())
    assert [len(found[name]) for name in ("equality", "shapes", "long")] == [1, 2, 1]
    assert found["left_out"] == []
    difference = found["equality"][0]["difference"]
    assert difference["float32"] == difference["tf32"] == 0.0
    assert difference["3xtf32"] < 1e-5
    for row in [*found["shapes"], *found["long"]]:
        assert row["conservation"] < 1e-4
        assert row["of_peak"] > 0
        assert len(row["seconds"]) == gpu.RUNS


def test_what_the_minutes_do_not_hold_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ["gpu", "--device", "cpu", "--quick", "--minutes", "-1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "-o", str(tmp_path / "found.json")])
    gpu.main()
    said = capsys.readouterr().out
    assert "left out, the minutes are over: equality: gpt2 per_layer, 16 tokens" in said
    assert "long: llama per_layer, 6000 tokens" in said
