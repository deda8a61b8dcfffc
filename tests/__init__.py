"""The tests."""

import runtime  # noqa: F401 - sets what gRPC must know before a test uses it
