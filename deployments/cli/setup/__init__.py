"""Commands that prepare a merge: write a recipe, check the machine, describe recipes to editors."""
