"""Names of the transcoder formats, where a command's help can list them without loading torch."""

MODULES = {
    "tracer": "native",
    "crosslayer-transcoder": "crosslayer_transcoder",
    "circuit-tracer": "circuit_tracer",
    "clt-forge": "clt_forge",
    "crosslayer-coding": "crosslayer_coding",
    "gemma-scope": "gemma_scope",
    "gemma-scope-2": "gemma_scope_2",
    "openmoss": "openmoss",
    "saelens": "saelens",
    "sparsify": "sparsify",
}
"""Name of a format -> its module in `formats/`. A folder is offered to them in this order."""
