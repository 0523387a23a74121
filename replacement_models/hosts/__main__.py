"""`python -m replacement_models.hosts` prints the table of supported and refused decoders."""

import sys

from replacement_models.hosts.support import support_table

if __name__ == "__main__":
    sys.stdout.write(f"{support_table()}\n")
