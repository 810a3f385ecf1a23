"""Matrix products of the decompositions: by the faster library for this processor, and symmetric ones by halves."""
