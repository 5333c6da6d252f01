"""The worker: one unprivileged process per VM that serves VMBus and the agent connection."""
