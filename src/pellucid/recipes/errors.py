"""How a recipe ends early: with a message of one line and the likely fix, never with a traceback."""


class RecipeError(ValueError):
    """An option, a file or the data cannot be used; the message names it and says what to do."""


class Stopped(Exception):
    """The user stopped a training; the message says what is kept."""
