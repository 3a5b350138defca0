"""The one error of this room: it names the field, the value, and what would have been valid."""


class SpecError(ValueError):
    """A setting that cannot be what it is."""

    def __init__(self, field: str, value: object, valid: str):
        """Builds the message from the dotted `field`, its `value` and a sentence on what is `valid`."""
        super().__init__(f"{field} = {value!r} cannot be used: {valid}")
        self.field, self.valid = field, valid


def require(condition: bool, field: str, value: object, valid: str) -> None:
    """Raises `SpecError` unless `condition` holds."""
    if not condition:
        raise SpecError(field, value, valid)
