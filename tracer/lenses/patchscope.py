"""A patchscope: a residual stream of one prompt, read by the model itself in another.

Ghandeharioun et al. 2024, "Patchscopes: A Unifying Framework for Inspecting Hidden Representations
of Language Models", for one model and no map between source and target.
"""

from collections.abc import Sequence

import torch

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.interventions.generate import Comparison, generate
from tracer.interventions.values import Steering

Prompt = str | Sequence[int]


@one_call()
@torch.no_grad()
def patchscope(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    source_prompt: Prompt,
    layer: int,
    position: int,
    target_prompt: Prompt,
    target_layer: int | None = None,
    target_position: int = -1,
    *,
    max_new_tokens: int = 10,
    temperature: float = 0.0,
    seed: int = 0,
) -> Comparison:
    """Let the model go on with a prompt in which one stream is that of another prompt.

    Args:
        model: the model.
        source_prompt: text, or token ids taken as they stand.
        layer: the stream entering this layer of it (L: that entering the final norm).
        position: at this token; negative counts from the end.
        target_prompt: the user's, as one that repeats or describes what stands at a place in it.
        target_layer: put it in where the stream enters this layer; None is `layer`.
        target_position: at this token.
        max_new_tokens: at most so many.
        temperature: 0 takes the likeliest token.
        seed: of the sampling.

    Returns:
        The continuations: `steered` with the stream put in, and `plain`, what the target prompt
        says by itself; each has `text`, `tokens` and `logits`.

    Raises:
        TraceError: a layer or position does not exist, or the text grows too long.
        ModelError: a prompt does not fit the model.
    """
    last, there = len(model.host.blocks), layer if target_layer is None else target_layer
    streams = []
    for name, prompt, at, where in (
        ("source", source_prompt, layer, position),
        ("target", target_prompt, there, target_position),
    ):
        if not 0 <= at <= last:
            raise TraceError(f"patchscope: {name} layer {at} is not in 0..{last}")
        stream = model.record(prompt, keep_patterns=False, last_logits=True).residuals[at]
        if not -len(stream) <= where < len(stream):
            raise TraceError(
                f"patchscope: {name} position {where} is not among the {len(stream)} tokens of "
                f"{prompt!r:.60}"
            )
        streams.append(stream[where])
    # Nothing below moves, so adding the difference puts the source's stream there.
    put_in = Steering(layer=there, vector=streams[0] - streams[1], position=target_position)
    [found] = generate(
        model,
        [target_prompt],
        [put_in],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    return found
