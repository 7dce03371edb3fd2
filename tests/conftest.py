"""Shape checks for every test: jaxtyping annotations of `fourfold` are enforced by beartype."""

import jaxtyping
import pytest

jaxtyping.install_import_hook("fourfold", "beartype.beartype")


@pytest.fixture
def without_shape_checks():
    """Switch the shape checks off, so that a test sees the library's own error sentence."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
