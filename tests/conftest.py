"""Settings of every test run."""

import os

# The tensors of the tests are tiny: several threads would only wait for each other, on a machine
# that does something else besides ten times longer than one thread needs for the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
