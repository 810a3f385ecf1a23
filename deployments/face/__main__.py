"""`python -m eigenmerge` is the command `eigenmerge`."""

from __future__ import annotations

from eigenmerge.deployments.cli.app import main

if __name__ == "__main__":
    main()
