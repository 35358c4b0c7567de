"""What every test may rely on."""

import signal

# A shell without job control starts what runs in its background with SIGINT ignored, and commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
