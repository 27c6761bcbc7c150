"""What does an agent understand, and how long does it take to obey?"""

import signal

STOP, KILL = signal.SIGTERM, signal.SIGUSR1
"""Let the component save and end; kill it."""
HANDLED = {STOP, KILL, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""All mean STOP, but KILL."""
SAVE_S = 20.0
"""Longest a component may take to save once it has been told to stop."""
END_S = 5.0
"""Longest an agent may take to end once its components have, and the nursery once the agents."""
