"""The core: the plan, the view, the formula, the checks of arguments, and the dispatch. Imports no array library."""
