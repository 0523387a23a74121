"""A GGUF file as a Hugging Face folder, weights dequantised once: `model.py FILE.gguf FOLDER`."""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

FORGOTTEN = {"quantization_config", "_name_or_path", "transformers_version", "dtype"}
"""Of the configuration: what is true of the file only."""


def main(file: Path, folder: Path) -> None:
    """Load the one and save the other."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    about = {
        name: value for name, value in loaded.config.to_dict().items() if name not in FORGOTTEN
    }
    model = type(loaded)(type(loaded.config)(**about))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
