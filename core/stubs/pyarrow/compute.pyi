# The function of pyarrow.compute that Eigenmerge calls.
from . import Array

def match_substring_regex(strings: Array, pattern: str) -> Array: ...
