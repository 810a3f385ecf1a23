"""How matrices are stored: as (out, in) or (in, out), stacked or one by one, and under which names."""
