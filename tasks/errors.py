"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input: one clear sentence that names the file, line or key at fault and what to do; the CLI prints it without a traceback."""


class RecipeError(UserError):
    """A recipe or a command line that says something impossible: nothing has been run."""
