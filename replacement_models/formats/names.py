"""Names of the file formats, for a command line that must answer before torch is loaded."""

KNOWN = (
    *("tracer", "crosslayer-transcoder", "circuit-tracer", "clt-forge", "crosslayer-coding"),
    *("gemma-scope", "gemma-scope-2", "openmoss", "saelens", "sparsify"),
)
"""In the order in which a folder is offered to them."""
WRITTEN = KNOWN
"""Those that can be written too; a test holds both to `files.FORMATS`."""
