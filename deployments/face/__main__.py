"""`python -m eigenmerge` is the command `eigenmerge`."""

from __future__ import annotations

from eigenmerge.deployments.cli.app import main

main()
