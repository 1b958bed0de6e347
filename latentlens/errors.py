"""Every error a user can meet, by name.

Each says what came, what is allowed and what to do next. All derive from `LatentLensError`, so one
`except` catches the lot; each also derives from the builtin a caller would expect.
"""


class LatentLensError(Exception):
    """Root of every error that latentlens raises on purpose."""


# -- asking for something that is not there -------------------------------------------------------


class UnsupportedArchitecture(LatentLensError, TypeError):
    """The model has no decoder-block structure that latentlens can find."""


class SiteNotFound(LatentLensError, KeyError):
    """The site does not exist in this model; the message names the nearest valid ones."""

    def __str__(self) -> str:
        """Return the message itself: `KeyError` would print it quoted and escaped."""
        return str(self.args[0]) if self.args else ""


class WhereNotValid(LatentLensError, ValueError):
    """The position selection cannot be read, or selects nothing in some row."""


class NotAligned(LatentLensError, ValueError):
    """Two prompts of different lengths, and nothing said which of their tokens correspond."""


class BadInput(LatentLensError, ValueError):
    """An argument has a wrong type, shape or value."""


class ContextTooLong(LatentLensError, ValueError):
    """A text has more tokens than the model has positions."""


class NoChatTemplate(LatentLensError, ValueError):
    """A chat was given to a tokenizer without a chat template."""


# -- running a model ------------------------------------------------------------------------------


class HookNeverFired(LatentLensError, RuntimeError):
    """A requested site was never reached, so nothing was captured or steered there."""


class CompiledModel(LatentLensError, RuntimeError):
    """Hooks on a compiled module would be ignored in silence."""


class OutOfMemory(LatentLensError, RuntimeError):
    """Even one row does not fit in memory."""


class TooLarge(LatentLensError, RuntimeError):
    """The forecast of a capture exceeds the stated ceiling or the free disk."""


class NonFiniteActivations(LatentLensError, FloatingPointError):
    """NaN or infinity in captured activations."""


class SAEMismatch(LatentLensError, ValueError):
    """The SAE does not belong to this model, site, scale or centring; the message is the preflight report."""


class CheckFailed(LatentLensError, AssertionError):
    """The parity self-test of a model did not pass."""


# -- judges behind an endpoint --------------------------------------------------------------------


class EndpointError(LatentLensError, OSError):
    """The server of a judge or writer refuses, or was not reached in all tries."""


class BudgetSpent(LatentLensError, RuntimeError):
    """The number of requests that was allowed has been sent."""


# -- the cache and files --------------------------------------------------------------------------


class CacheError(LatentLensError, OSError):
    """The activation cache cannot be read or written."""


class CacheCorrupt(CacheError):
    """Stored bytes do not match their digest."""


class CacheVersion(CacheError):
    """The cache or file was written by a newer latentlens."""


class CacheReadOnly(CacheError):
    """The cache folder cannot be written."""


class UnsafeFile(LatentLensError, ValueError):
    """The file could execute code when loaded (pickle); latentlens never opens such files."""


class WeightsCorrupt(LatentLensError, OSError):
    """The embedded model's files do not match their checksums."""


# -- statistics -----------------------------------------------------------------------------------


class TooFewExamples(LatentLensError, ValueError):
    """Not enough examples, groups or classes for the estimate asked for."""
