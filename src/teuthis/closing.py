"""What is used in a `with` block and closed at its end."""

from types import TracebackType
from typing import Self


class Closing:
    """Its `with` block ends with `close`, however it ends."""

    def close(self) -> None:
        """Lets go of what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
