"""The English text on which perplexity is measured. It was written for this purpose and is in no data set."""

from __future__ import annotations

SAMPLE_TEXT = """\
The ferry leaves the harbour at seven in the morning and returns after dark. On weekdays it carries workers, letters \
and crates of fish; on Sundays it is full of families who want to see the lighthouse. The captain has made the \
crossing for more than twenty years, and she says that no two days on the water are the same. In winter the wind comes \
from the north, and the boat arrives late. In summer the sea is often so calm that children lean over the rail to look \
for jellyfish.

A kettle of water at room temperature needs about three minutes to boil. Most of the energy goes into the water, and a \
small part warms the metal and the air around it. If the kettle is half full, the time is roughly half as long. People \
who live in the mountains notice that water boils there at a lower temperature, because the pressure of the air is \
lower, so that beans and potatoes take longer to cook.

To sort a list of numbers, compare each number with its neighbour and exchange the two if they are in the wrong order. \
Repeat this until nothing changes. The method is easy to explain and slow for long lists: a list that is ten times as \
long takes about a hundred times as long. Better methods divide the list into parts, sort the parts, and join them.
"""
