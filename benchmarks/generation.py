"""`tracer.generate` beside Hugging Face's own generation: `python -m benchmarks.generation MODEL`.

CPU seconds. MODEL is a folder with a language model; its neurons stand in for a dictionary, and
nothing is changed, or one neuron is. Both take the likeliest tokens, as many, from the same prompt,
in turns; the tokens must be the same. Changed text is written beside the plain one, two rows a
pass, so Hugging Face writes two rows there too. Prints a table and writes JSON.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

import tracer
from benchmarks.output import RESULTS, output_file
from replacement_models.speed.choice_file import processor_name

PROMPT = "The capital of the state containing Dallas is"


def timed(call: Callable[[], list[int]]) -> tuple[list[int], float]:
    """What a call gives, and its user and system seconds."""
    before = os.times()
    found = call()
    after = os.times()
    return found, sum(after[:2]) - sum(before[:2])


def main() -> None:
    """Measure both, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "generation.json")
    options = parser.parse_args()
    model = tracer.ReplacementModel.load(options.model, "neurons")
    host = model.host.model
    ids = torch.tensor([model.tokenize(PROMPT)])
    change = tracer.Intervention(layer=0, position=-1, feature=0, scale=1.0)
    settings = {"min_new_tokens": options.new, "do_sample": False, "pad_token_id": 0}

    def theirs(rows: int) -> list[int]:
        batch = ids.repeat(rows, 1)
        with torch.no_grad():
            mask = torch.ones_like(batch)
            out = host.generate(batch, attention_mask=mask, max_new_tokens=options.new, **settings)
        return out[0, ids.shape[1] :].tolist()

    def ours(rows: int) -> list[int]:
        changes = [change] * (rows - 1)
        [found] = tracer.generate(model, [PROMPT], changes, max_new_tokens=options.new)
        return list(found.plain.tokens)

    cases = {}
    for rows, name in ((1, "nothing changed"), (2, "a neuron kept as it is")):
        seconds: dict[str, list[float]] = {"hugging_face": [], "tracer": []}
        for _ in range(options.runs):
            said, their_time = timed(lambda rows=rows: theirs(rows))
            mine, my_time = timed(lambda rows=rows: ours(rows))
            assert mine == said[: len(mine)], (mine, said)
            seconds["hugging_face"].append(their_time)
            seconds["tracer"].append(my_time)
        least = {who: round(min(times), 2) for who, times in seconds.items()}
        median = {who: round(statistics.median(times), 2) for who, times in seconds.items()}
        ratio = round(min(seconds["tracer"]) / min(seconds["hugging_face"]), 2)
        cases[name] = {"least": least, "median": median, "ratio_of_least": ratio}
        print(f"{name:24} {least} ratio {ratio}")
    result = {
        "processor": processor_name(),
        "model": options.model.name.removeprefix("real-"),
        "new_tokens": options.new,
        "runs": options.runs,
        "threads": torch.get_num_threads(),
        "cpu_seconds": cases,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
