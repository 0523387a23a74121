"""Which dictionary a store belongs to."""

from hashlib import sha256

import torch

from replacement_models import ReplacementModel

AT_ONCE = 4096
"""Features hashed together."""


def dictionary_hash(model: ReplacementModel) -> str:
    """The content hash of a dictionary's files; of one without files, of its weights.

    Weights are hashed as bfloat16, so that a model's neurons are the same dictionary in whatever
    precision it is loaded.

    Returns:
        64 hexadecimal digits.
    """
    if model.transcoder_hash:
        return model.transcoder_hash + (f"+{model.elsewhere}" if model.elsewhere else "")
    digest = sha256(type(model.transcoder).kind.encode())
    for layer in model.transcoder.present:
        weights = model.transcoder.layers[layer]
        digest.update(f"{layer} {weights.activation.name} {tuple(weights.W_enc.shape)}".encode())
        for features in torch.arange(len(weights.W_enc)).split(AT_ONCE):
            wanted = features.to(weights.b_enc.device)
            for part in (
                model.transcoder.encoder_rows(layer, wanted),
                weights.b_enc[wanted],
                model.transcoder.decoder_rows(layer, wanted),
            ):
                rounded = part.detach().to("cpu", torch.bfloat16).contiguous()
                digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
