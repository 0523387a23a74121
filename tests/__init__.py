"""`test_<package>_<module>.py`; `data/` holds cases computed by other software.

A package, since other distributions install one of this name, kronfluence among them.
"""
