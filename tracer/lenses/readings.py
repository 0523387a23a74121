"""What each lens makes of every stream of a prompt, as logits, one site after the other.

- "logit": the stream through the model's own final norm and unembedding (nostalgebraist 2020,
  "interpreting GPT: the logit lens").
- "tuned", "jacobian": an affine map first, fitted on text (`tuned.py`, `jacobian.py`).
- "local": through the frozen maps above, at the recorded norm denominator (`local.py`). The
  reading alone: its constant is left out, and so are all biases.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.sites import Site, Stage
from tracer.errors import TraceError
from tracer.lenses.affine import AffineLens
from tracer.lenses.local import of_recording

KINDS = ("logit", "tuned", "jacobian", "local")
Reading = Callable[[Site], Float[Tensor, "positions vocabulary"]]
"""From a site of the stream to logits, after the cap but for the local lens."""


def unembedded(
    model: ReplacementModel, stream: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows vocabulary"]:
    """The logits the model shows when this stream enters its final norm."""
    norm, stream = model.host.final_norm, stream.to(model.device)
    return model.host.cap(model.host.unembed(norm.frozen(stream, norm.scale(stream))))


def reader(
    model: ReplacementModel,
    recording: Recording,
    lens: AffineLens | str,
    skip_positions: int = 1,
) -> Reading:
    """How a lens reads one recorded prompt.

    Args:
        model: the model.
        recording: its pass, with attention patterns if the lens is local.
        lens: "logit", "local", or a fitted one.
        skip_positions: of the local lens.
    """
    if isinstance(lens, AffineLens):
        return lambda site: unembedded(model, lens.read(site.layer, recording.stream(site)))
    if lens == "logit":
        return lambda site: unembedded(model, recording.stream(site))
    return of_recording(model, recording, skip_positions).reading


def stream_sites(model: ReplacementModel, sites: Sequence[Site | str] | None) -> list[Site]:
    """Sites of the stream, in order; None is those entering each layer and the final norm.

    Raises:
        TraceError: the stream cannot be read at one of them, or there are none.
        ModelError: a name is no site's.
    """
    known = model.host.stream_sites
    if sites is None:
        return [site for site in known if site.stage is Stage.RESID_PRE]
    named = [Site.parse(site) if isinstance(site, str) else site for site in sites]
    for site in named:
        if site not in known:
            raise TraceError(
                f"lens: the residual stream of this model cannot be read at {site}; expected some "
                f"of {', '.join(map(str, known))}"
            )
    if not named:
        raise TraceError("lens: sites is an empty list; name at least one, or None for all layers")
    return sorted(set(named))


def divergences(
    final: Float[Tensor, "*rows vocabulary"], found: Float[Tensor, "*rows vocabulary"]
) -> Float[Tensor, "*rows"]:
    """KL(final ‖ found), in nats: what is lost by taking `found` for the model's answer."""
    expected, said = (logits.double().log_softmax(-1) for logits in (final, found))
    return torch.nn.functional.kl_div(said, expected, log_target=True, reduction="none").sum(-1)
