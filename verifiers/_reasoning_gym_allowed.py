"""To be written by the survey."""

ALLOWED = ("leg_counting",)
