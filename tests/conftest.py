"""Set-up of all tests: asynchronous tests run on asyncio, by anyio's plugin."""

import pytest

pytest.register_assert_rewrite("tests.store_contract")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
