"""A stream as a file that can't seek."""

from collections.abc import Callable


class Pipe:
    """What arrives at a stream: `head`, then what `read(count)` returns."""

    def __init__(self, head: bytes, read: Callable[[int], bytes]):
        self._head, self._read, self.passed = head, read, 0

    def read(self, count: int) -> bytes:
        """At most `count` bytes, as soon as there are any; none at the end."""
        data, self._head = self._head[:count], self._head[count:]
        data = data or self._read(count)
        self.passed += len(data)
        return data

    def whole(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end."""
        parts = []
        while count > 0 and (part := self.read(min(count, 1 << 16))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def back(self, data: bytes) -> None:
        """Put `data` back, to be read again."""
        self._head, self.passed = data + self._head, self.passed - len(data)

    def skip(self, count: int | None = None) -> int:
        """Read on by `count` bytes, or to the end; the number of bytes that there were."""
        passed = self.passed
        while (count is None or self.passed < passed + count) and self.read(
            1 << 16 if count is None else min(1 << 16, passed + count - self.passed)
        ):
            pass
        return self.passed - passed
