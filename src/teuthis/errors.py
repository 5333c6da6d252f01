"""The exceptions of this package.

TeuthisError
├── ConfigurationError   the request cannot work: bad size, missing program
├── KernelError          the guest kernel, its packages or the initrd cannot be used
└── VMError              a virtual machine ended or refused
"""


class TeuthisError(Exception):
    """Something went wrong; the message says what, and what to do about it."""


class ConfigurationError(TeuthisError):
    """The request cannot work as it stands."""


class KernelError(TeuthisError):
    """The guest kernel, its packages or the initrd cannot be used."""


class VMError(TeuthisError):
    """A virtual machine ended or refused."""
