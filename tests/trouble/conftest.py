"""One stack for all trouble tests of a process, its Docker engine behind a relay."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.trouble.field import Field, prepared_field
from tests.trouble.images import Images, images


@pytest.fixture(scope="session")
def field_of_trouble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """The whole stack with real containers."""
    with prepared_field(tmp_path_factory.mktemp("trouble"), relayed=True) as made:
        yield made


@pytest.fixture
def field(field_of_trouble: Field) -> Iterator[Field]:
    """The same; what a test made is deleted after it, also when it failed, and has to be gone."""
    yield field_of_trouble
    made, field_of_trouble.made = field_of_trouble.made, []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(field_of_trouble.delete, made))


@pytest.fixture(scope="session", autouse=True)
def no_sandbox(field_of_trouble: Field, bad_images: Images) -> Iterator[str]:
    """An environment whose image is no sandbox: made first, since it takes a while to be told from a slow one."""
    environment_id = field_of_trouble.create(image_ref=bad_images.stranger("exec sleep 3600"))
    field_of_trouble.made.clear()
    yield environment_id
    # Before its image goes, which would otherwise stay without a name.
    field_of_trouble.delete(environment_id)


@pytest.fixture(scope="session")
def bad_images() -> Iterator[Images]:
    """A maker of images that misbehave."""
    with images() as maker:
        yield maker
