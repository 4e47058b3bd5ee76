"""One running stack for the whole suite, in a state folder of its own; nothing outlives the session."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("UNIMED_SHARED_DATA") or REPO.parent / "shared" / "data")


def pytest_sessionstart(session):
    """Tests never see the state, profile or credentials of the machine they run on; told to end, they take down what they started."""
    forget_settings()
    # Ray reads this once, when a test first imports it, which may be before there is a stack.
    os.environ["RAY_AUTH_MODE"] = "token"
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_exception_interact(node, call):
    """Ray, once it runs in this process, makes SystemExit of a signal to end, which pytest would take for one more test that fails."""
    if isinstance(call.excinfo.value, SystemExit):
        node.session.shouldstop = "told to end"


def forget_settings() -> None:
    for name in [name for name in os.environ if name.startswith(("UNIMED_", "PREFECT_", "RAY_", "AWS_"))]:
        if name != "AWS_CA_BUNDLE":
            del os.environ[name]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """What needs the whole stack comes last: as long as it runs, it takes its share of the machine."""
    items.sort(key=_needs_stack)
    for item in filter(_needs_stack, items):
        item.add_marker("stack")


def _needs_stack(item: pytest.Item) -> bool:
    return "stack" in item.fixturenames


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("state")


@contextmanager
def object_store(state_dir: Path):
    """A real object store with its state in this folder; gives the settings that lead there, and afterwards the environment is as it was."""
    from infra.settings import get_settings
    from infra.stack import Stack

    before = dict(os.environ)
    forget_settings()
    os.environ["UNIMED_STATE_DIR"] = str(state_dir)
    os.environ["UNIMED_PARAMS_FILE"] = str(REPO / "tests" / "params.yaml")
    get_settings.cache_clear()
    try:
        Stack().up(services=["s3"])
        get_settings().export()
        yield get_settings()
    finally:
        Stack().down()
        os.environ.clear()
        os.environ.update(before)
        get_settings.cache_clear()


@pytest.fixture(scope="session")
def s3(state_dir):
    """Settings with a real object store behind them."""
    with object_store(state_dir) as settings:
        yield settings


@pytest.fixture(scope="session")
def stack(s3):
    """The whole stack: S3, Prefect, Ray and the worker."""
    from infra.settings import get_settings
    from infra.stack import Stack

    running = Stack()
    running.up()
    get_settings().export()
    return running


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared medical images at {SHARED} (UNIMED_SHARED_DATA names another place)")
    return SHARED
