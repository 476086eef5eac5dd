"""`python -m jaxclnf`: the command `jaxclnf`."""

import sys

from jaxclnf.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
