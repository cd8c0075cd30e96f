"""What plug-ins of the tests are: outside code imports it by this name."""


class Kind:
    """The type that a plug-in has."""
