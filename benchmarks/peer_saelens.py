"""SAELens's side of a comparison, run in an environment of its own that has SAELens.

    PEER_PYTHON benchmarks/peer_saelens.py FOLDER OUT.safetensors

FOLDER holds a dictionary as `tracer train` wrote it, a folder a layer, and `inputs.safetensors`;
OUT gets what SAELens makes of the inputs: activations and reconstructions.
"""

import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file


def main(folder: Path, out: Path) -> None:
    """Encode and reconstruct, layer by layer."""
    found = {}
    for name, x in load_file(folder / "inputs.safetensors").items():
        dictionary = SAE.load_from_disk(str(folder / "transcoder" / name), device="cpu")
        with torch.no_grad():
            found[f"{name}.active"] = dictionary.encode(x).contiguous()
            found[f"{name}.written"] = dictionary(x).contiguous()
    save_file(found, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
