"""What stands in the place of a CLIP for models that are conditioned on classes."""

from typing import NoReturn


class NoTextEncoderError(ValueError, AttributeError):
    """A text encoder was asked for where there is none; of both kinds, so that ``hasattr`` is False."""


class NoTextEncoder:
    """The CLIP of a model without one: whoever uses it is told so.

    None would do, were it not for nodes that fail on it in ways of their own.
    """

    def __init__(self, model: str) -> None:
        self._reason = (
            f"clip: {model} is conditioned on a class and has no text encoder; connect StageVAR Class Label "
            "to the sampler in place of CLIP Text Encode"
        )

    def __getattr__(self, name: str) -> NoReturn:
        # Only for what is not there; copying and pickling ask before there is a reason.
        reason = self.__dict__.get("_reason", f"{type(self).__name__} has no {name}")
        raise NoTextEncoderError(reason)
