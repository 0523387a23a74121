"""Which sentences of the corpus made this answer? Influence functions on the embedded default.

    python examples/influence.py                                  # needs tracer[influence]
    python examples/influence.py "the opposite of hot is" cold --sentences 1200 --top 10

Draws sentences as the language model was trained on, fits the curvature of its loss to them
(EK-FAC, by the library kronfluence) and prints the sentences that did most for the answer and most
against it. docs/guides/influence.md says what these numbers are worth.
"""

import argparse

from replacement_models import ReplacementModel
from replacement_models.tiny.recipe.corpus import plain
from replacement_models.tiny.recipe.influence import (
    asked,
    drawn,
    influences,
    language_model,
    rows_of,
)


def main() -> None:
    """Print a line a sentence."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("prompt", nargs="?", default="the opposite of hot is")
    arguments.add_argument("answer", nargs="?", default="cold")
    arguments.add_argument("--sentences", type=int, default=400, help="How many to draw.")
    arguments.add_argument("--top", type=int, default=5, help="How many to print at each end.")
    arguments.add_argument("--seed", type=int, default=0, help="Of the sentences.")
    given = arguments.parse_args()
    replaced = ReplacementModel.load()
    model, source = language_model(replaced)
    marked = drawn(source, given.sentences, given.seed)
    answers = rows_of([asked(given.prompt, given.answer)], replaced.tokenizer)
    [scores] = influences(model, rows_of(marked, replaced.tokenizer), answers)
    order = scores.argsort(descending=True).tolist()
    print(f"{given.prompt} → {given.answer}: influence of {len(marked)} sentences")
    print("nats         sentence")
    for number in order[: given.top]:
        print(f"{scores[number]:+.2e}    {plain(marked[number])}")
    print("…")
    for number in order[-given.top :]:
        print(f"{scores[number]:+.2e}    {plain(marked[number])}")


if __name__ == "__main__":
    main()
