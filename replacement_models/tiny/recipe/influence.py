"""Which sentences of the corpus made an answer: influence functions, by the library kronfluence.

What would become of the answer if the language model had been trained without a sentence? The
gradient of the answer's log-probability, times the inverse of the loss's curvature, times the
gradient of the sentence's loss says it to first order. Curvature is EK-FAC's: one Kronecker product
a matrix, with eigenvalues corrected. Matrices of the blocks count; embeddings, which were frozen,
unembedding, norms and positions do not.

Source: Grosse et al. 2023, "Studying Large Language Model Generalization with Influence Functions";
George et al. 2018, "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis",
for the curvature.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from replacement_models.errors import ModelError
from replacement_models.replacement import ReplacementModel
from replacement_models.tiny.recipe.corpus import (
    ANSWER,
    NOISE,
    SHARES,
    Encoder,
    Source,
    sentences,
    whole_words,
)
from replacement_models.tiny.recipe.facts import load_facts, split_cities
from replacement_models.tiny.recipe.train_model import ModelRecipe

FITTED = 300
"""Sentences that curvature is fitted to in its eigenbasis."""
BATCH = 64
"""Sentences whose gradients are held at once."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Sentences, one a row, with what each next token counts in the loss."""

    ids: Int[Tensor, "rows positions"]
    """Start token, sentence, and start tokens again to fill the row."""
    counts: Float[Tensor, "rows positions"]
    """Weight of each token as the one to be predicted: 1 for answers, the recipe's share for other
    predictable ones, 0 for the rest."""
    lengths: Int[Tensor, " rows"]
    """Tokens of each, the start token included."""

    def __len__(self) -> int:
        return len(self.ids)

    def those(self, which: Sequence[int]) -> "Rows":
        """Some of them."""
        at = torch.tensor(which, dtype=torch.long)
        return Rows(self.ids[at], self.counts[at], self.lengths[at])

    def loss(self, model: nn.Module, own: bool = False) -> Float[Tensor, " rows"]:
        """Cross-entropy of each row in nats, weighted and summed over its tokens.

        Args:
            model: what predicts.
            own: of next tokens drawn from the model's own distribution, as its Fisher information
                wants them, in place of the row's.
        """
        logits = model(self.ids).logits[:, :-1].flatten(0, 1)
        chances = logits.detach().softmax(-1)
        wanted = torch.multinomial(chances, 1)[:, 0] if own else self.ids[:, 1:].flatten()
        each = nn.functional.cross_entropy(logits, wanted, reduction="none")
        return (each.view(len(self), -1) * self.counts[:, 1:]).sum(1)


def language_model(model: ReplacementModel) -> tuple[GPT2LMHeadModel, Source]:
    """A copy of the embedded default's language model, and what its sentences were drawn from."""
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(model.tokenizer))
    return cast(GPT2LMHeadModel, copy.deepcopy(model.host.model).float()), source


def drawn(source: Source, count: int, seed: int) -> list[str]:
    """Marked sentences of the corpus, but for random repeats, which say nothing."""
    return list(islice(sentences(source, seed, SHARES), count))


def rows_of(marked: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Rows of marked sentences, each alone.

    Raises:
        ModelError: one is longer than the model's context.
    """
    encode, share = Encoder(tokenizer), ModelRecipe().context_share
    found = []
    for sentence in marked:
        ids, kinds = encode(sentence)
        weights = [1.0 if kind == ANSWER else 0.0 if kind == NOISE else share for kind in kinds]
        found.append(([encode.start, *ids], [0.0, *weights]))
    longest = max(len(ids) for ids, _ in found)
    if longest > ModelRecipe().context:
        raise ModelError(
            f"a sentence has {longest} tokens, expected at most {ModelRecipe().context}: shorten it"
        )
    return Rows(
        torch.tensor([ids + [encode.start] * (longest - len(ids)) for ids, _ in found]),
        torch.tensor([counts + [0.0] * (longest - len(counts)) for _, counts in found]),
        torch.tensor([len(ids) for ids, _ in found]),
    )


def asked(prompt: str, answer: str) -> str:
    """A prompt and its answer as a marked sentence of which the answer alone counts."""
    return f"<{prompt}> [{answer}]"


def with_linear(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """A copy in which GPT-2's own kind of layer is `nn.Linear`, the kind the library knows."""
    found = copy.deepcopy(model)
    for parent in list(found.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Conv1D):
                setattr(parent, name, _linear(layer))
    return found.eval()


def _linear(layer: Conv1D) -> nn.Linear:
    made = nn.Linear(*layer.weight.shape)
    with torch.no_grad():
        made.weight.copy_(layer.weight.T)
        made.bias.copy_(layer.bias)
    return made


def influences(
    model: GPT2LMHeadModel,
    trained: Rows,
    answers: Rows,
    damping: float | None = None,
    seed: int = 0,
) -> Float[Tensor, "answers sentences"]:
    """What each sentence did for each answer, in nats.

    Args:
        model: as it stands after training on the sentences.
        trained: sentences it was trained on; the curvature is theirs too.
        answers: prompts with answers (`asked`).
        damping: added to every eigenvalue of the curvature; None: a tenth of their mean in each
            matrix.
        seed: of the next tokens that curvature is drawn with.

    Returns:
        By how much the answer's log-probability is higher, to first order, for the sentence having
        been one of `trained`: positive where it helped.

    Raises:
        ModelError: kronfluence is not installed.
    """
    return influences_under(model, trained, answers, (damping,), seed)[0]


def influences_under(
    model: GPT2LMHeadModel,
    trained: Rows,
    answers: Rows,
    dampings: Sequence[float | None],
    seed: int = 0,
) -> Float[Tensor, "dampings answers sentences"]:
    """`influences` under several dampings, of one fit.

    Returns:
        As there, one after the other.

    Raises:
        ModelError: kronfluence is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _scores(model, trained, answers, dampings, seed) / len(trained)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"influence of training data needs {error.name}: pip install 'tracer[influence]'"
        ) from None


def _scores(
    model: GPT2LMHeadModel,
    trained: Rows,
    answers: Rows,
    dampings: Sequence[float | None],
    seed: int,
) -> Tensor:
    """What the library calls scores, of which it wants everything in files."""
    from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

    class Objective(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return Rows(*batch).loss(model, own=sample).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return Rows(*batch).loss(model).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return [
                name
                for name, layer in linear.named_modules()
                if isinstance(layer, nn.Linear) and name != "lm_head"
            ]

        def get_attention_mask(self, batch: Any) -> Tensor:
            rows = Rows(*batch)
            return torch.arange(rows.ids.shape[1])[None] < rows.lengths[:, None]

    linear, task = with_linear(model), Objective()
    torch.manual_seed(seed)
    data, wanted = (TensorDataset(r.ids, r.counts, r.lengths) for r in (trained, answers))
    with TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "answer", prepare_model(linear, task), task,
            cpu=True, disable_tqdm=True, output_dir=folder,
        )  # fmt: skip
        analyzer.fit_all_factors(
            "curvature",
            data,
            per_device_batch_size=BATCH,
            factor_args=FactorArguments("ekfac", lambda_max_examples=FITTED),
        )
        found = []
        for number, damping in enumerate(dampings):
            analyzer.compute_pairwise_scores(
                f"scores{number}", "curvature", wanted, data,
                per_device_query_batch_size=len(answers), per_device_train_batch_size=BATCH,
                score_args=ScoreArguments(damping_factor=damping),
            )  # fmt: skip
            found.append(analyzer.load_pairwise_scores(f"scores{number}")["all_modules"])
        return torch.stack(found)
