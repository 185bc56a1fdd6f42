"""The exceptions a user sees. Each message says what is wrong, where (file, tensor, key), and what to do.

The command line prints the message of any `BitnetError` as one line and exits with code 2; a traceback
means a defect of the library.
"""

_LONGEST = 2000  # characters of a message: a damaged file's own text can be as long as the file


class BitnetError(Exception):
    """Base of every error that is the input's fault rather than the library's."""

    def __str__(self) -> str:
        """The message as one that can be printed: not too long to read, without what a terminal would obey.

        Files' names and keys stand in it as they came.
        """
        message = super().__str__()
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} […] {message[-_LONGEST // 2 :]}"
        return "".join(char if char.isprintable() or char in "\n\t" else _escape(char) for char in message)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class ConfigError(BitnetError, ValueError):
    """A configuration holds an unknown key, an impossible value, or contradicts itself."""


class FormatError(BitnetError, ValueError):
    """A file is missing, damaged, or does not hold what its configuration promises."""


class UnsupportedError(BitnetError, ValueError):
    """The input is well formed, but asks for something the library does not implement."""


class InputError(BitnetError, ValueError):
    """A call's argument is out of range: token ids, prompt length, sampling parameters."""


class ResourceError(BitnetError, OSError):
    """The machine lacks something: disk space, network, memory, a readable cache."""


class DivergedError(BitnetError, ArithmeticError):
    """Training met too many steps in a row that are not finite; the weights are those before them."""
