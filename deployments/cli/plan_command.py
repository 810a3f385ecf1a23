"""`eigenmerge plan`: what a merge will do, before any weight is read."""


def plan() -> None:
    """Placeholder until the planner lands."""
