"""`python -m sae_lightning.formats`: SAEs from and to other libraries."""

import sys

from sae_lightning.formats.command import main

if __name__ == "__main__":
    sys.exit(main())
