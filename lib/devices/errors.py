"""The two mistakes that only exist when there is more than one device."""


class MismatchError(RuntimeError):
    """Devices that should act together do different things: another operation, shape, dtype or argument."""


class DeadlockError(RuntimeError):
    """No device can move: each waits for something that will never happen."""


class Stopped(BaseException):
    """Unwinds a device of a run that has already failed or was interrupted.

    A BaseException, so that a program's own `except Exception` does not swallow it. Readers never see it.
    """
