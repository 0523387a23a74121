"""Three pictures of what a dictionary says of its model: `pictures.py MODEL TRANSCODERS FOLDER`.

Beside each prompt stand the likeliest next token and the graph's scores, those of the linear skip
alone among them: features have to add to it.
"""

import json
import sys
from pathlib import Path

import tracer
from tracer import ReplacementModel

PROMPTS = {
    "dallas": "Fact: the capital of the state containing Dallas is",
    "opposite": "The opposite of hot is",
    "paris": "The Eiffel Tower is in the city of",
}
FEATURES = 500
NODES, EDGES = 0.6, 0.8
"""Shares of influence that the pictures show."""


def main(model: ReplacementModel, folder: Path) -> None:
    """Trace, prune, draw; keep the scores beside."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    for name, prompt in PROMPTS.items():
        graph = tracer.trace(model, prompt, max_features=FEATURES)
        graph.prune(nodes=NODES, edges=EDGES).render(folder / f"{name}.svg")
        answers = [node for node in graph.nodes.to_pylist() if node["kind"] == "logit"]
        scores[name] = {
            "prompt": prompt,
            "answer": answers[0]["text"],
            "probability": answers[0]["probability"],
            "replacement": graph.scores.replacement,
            "completeness": graph.scores.completeness,
            "uncovered": graph.scores.uncovered,
            "skip_alone": graph.metadata.get("skip_alone"),
        }
        print(json.dumps(scores[name]), flush=True)
    text = json.dumps(scores, indent=1) + "\n"
    (folder / "pictures.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(ReplacementModel.load(sys.argv[1], sys.argv[2]), Path(sys.argv[3]))
