"""Shape checks for every test: jaxtyping annotations of `fourfold` are enforced by beartype."""

import hypothesis
import jaxtyping
import pytest

# An int where a float is asked for is right in Python's own rules of types (PEP 484).
CHECKER = "beartype.beartype(conf=__import__('beartype').BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("fourfold", CHECKER)

# The same examples in every run, and no limit on their time: a shared machine may be slow.
hypothesis.settings.register_profile("course", derandomize=True, deadline=None)
hypothesis.settings.load_profile("course")


@pytest.fixture
def without_shape_checks():
    """Switch the shape checks off, so that a test sees the library's own error sentence."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def read(tmp_path):
    """Read a draft given as text, with other files beside it."""
    from fourfold.kit.drafts import read_draft  # after the hook above

    def write(text, name="main.tex", **files):
        for other, content in {name: text, **files}.items():
            path = tmp_path / other
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_draft(tmp_path / name)

    return write
