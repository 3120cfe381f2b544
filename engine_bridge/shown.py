"""Values in messages."""

_LONGEST = 80


def shown(value: object) -> str:
    """A value as a message shows it: on one line and short, whatever a client or a file holds."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write very long integers out
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__}"
    text = repr(value[:_LONGEST] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
