"""Forms of mergekit's recipes, and what Eigenmerge does with each."""
