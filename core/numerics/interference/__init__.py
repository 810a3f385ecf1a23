"""The WUDI family's operators and their decompositions."""
