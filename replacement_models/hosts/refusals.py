"""Why decoder types are refused, as read in transformers 5.23."""

from collections.abc import Collection

REFUSED: dict[str, Collection[str]] = {
    "its layers rescale the residual stream itself": (
        "beam", "doge", "gemma4", "gemma4_assistant", "gemma4_text", "gemma4_unified",
        "gemma4_unified_assistant", "gemma4_unified_text",
    ),
    "norms stand on the residual stream itself, behind the sums": (
        "minimax", "openai-gpt", "xlnet",
    ),
    "it has several residual streams, mixed by what they hold": (
        "deepseek_v4", "gemma3n", "gemma3n_text", "hy_v4", "qwen4_exp", "qwen4_exp_text",
    ),
    "a head's pattern is the difference of two, and a norm stands behind it": ("diffllama",),
    "its output maps depend on the token: attention is a mixture of experts": ("jetmoe",),
    "attention sinks scale heads' outputs outside the pattern that it returns": (
        "granite_swa", "granitemoe_swa",
    ),
    "its layers run several times": ("hrm_text",),
    "a layer has two attentions and a shortcut around the second": ("longcat_flash",),
    "it decodes patches of bytes": ("blt",),
    "its decoder also attends to images or sound": ("git", "mllama", "moshi"),
    "its positions come from a table that no module reads": ("ctrl",),
}  # fmt: skip
"""Reason to the types it holds for."""
