"""Profiles of the property tests: few examples by default, many with `--hypothesis-profile=deep` (as `make deep` does).

Neither has a deadline for an example: on a busy machine it would fail tests that say nothing about time.
"""

from hypothesis import settings

settings.register_profile("fast", max_examples=40, deadline=None)
settings.register_profile("deep", max_examples=1000, deadline=None)
settings.load_profile("fast")
