"""The trainer's exception for what a user can mend."""


class TrainerError(Exception):
    """Bad input to the trainer: one clear sentence that names the file or key at fault and what to do."""
