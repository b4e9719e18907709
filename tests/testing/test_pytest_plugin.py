"""The fixtures, as pytest finds them where protoserve is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with the protocol of these tests."""
    pytester.makepyfile(shouting=(HERE / "shouting.py").read_text())
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def run(pytester: pytest.Pytester, source: str, **outcomes: int) -> pytest.RunResult:
    """Run these tests, in a process of their own, and compare how they went."""
    pytester.makepyfile(test_it=source)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rE")
    result.assert_outcomes(**outcomes)
    return result


def test_it_is_found() -> None:
    (found,) = entry_points(group="pytest11", name="protoserve")
    assert found.value == "protoserve_pytest"


def test_servers_in_memory_share_the_clock(project: pytest.Pytester) -> None:
    run(
        project,
        """
        from shouting import SHOUT, shout

        def test_time(protoserve_memory, protoserve_clock):
            one = protoserve_memory(SHOUT, shout, keep_alive_timeout=60)
            two = protoserve_memory(SHOUT, shout, keep_alive_timeout=90)
            assert one.clock is two.clock is protoserve_clock
            clients = one.connect(), two.connect()
            for client in clients:
                client.send(b"a\\n")
                assert client.receive() == b"hello\\nA\\n"
            protoserve_clock.advance(60)
            assert [client.eof for client in clients] == [True, False]

        def test_another(protoserve_clock):
            assert protoserve_clock.now == 1000
        """,
        passed=2,
    )


def test_live_servers_are_stopped(project: pytest.Pytester) -> None:
    run(
        project,
        """
        import pytest
        from shouting import SHOUT, shout, shout_later

        served = []

        @pytest.mark.parametrize("process", [shout, shout_later])
        def test_serves(protoserve_live, process):
            for _ in range(2):
                live = protoserve_live(SHOUT, process, backlog=7)
                assert live.server.params.backlog == 7
                served.append(live)
                with live.connect() as client, client.makefile("rb") as file:
                    client.sendall(b"a\\n")
                    assert file.readline() == b"hello\\n"
                    assert file.readline() == b"A\\n"

        def test_is_gone():
            assert len(served) == 4
            for live in served:
                with pytest.raises(ConnectionRefusedError):
                    live.connect()
        """,
        passed=3,
    )


def test_a_test_that_fails_leaves_no_server(project: pytest.Pytester) -> None:
    run(
        project,
        """
        from protoserve import get_scheduler
        from shouting import SHOUT, shout

        def test_fails(protoserve_live, protoserve_memory):
            protoserve_live(SHOUT, shout)
            protoserve_memory(SHOUT, shout).connect().send(b"a\\n")
            raise ZeroDivisionError

        def test_is_gone():
            assert not get_scheduler().running
        """,
        failed=1,
        passed=1,
    )


def test_leaks_are_errors(project: pytest.Pytester) -> None:
    # A short patience: these leaks do not end by themselves.
    project.makeconftest(
        """
        import functools
        import pytest
        import protoserve.testing
        from protoserve.testing import no_leaks

        @pytest.fixture(autouse=True)
        def impatient(monkeypatch):
            short = functools.partial(no_leaks, 0.05)
            monkeypatch.setattr(protoserve.testing, "no_leaks", short)
        """
    )
    result = run(
        project,
        """
        import os
        import threading
        from shouting import SHOUT, shout

        def test_pipe(protoserve_no_leaks):
            os.pipe()

        def test_client(protoserve_live):
            global client
            client = protoserve_live(SHOUT, shout).connect()

        def test_thread(protoserve_memory):
            protoserve_memory(SHOUT, shout)
            wait = threading.Event().wait
            threading.Thread(target=wait, daemon=True, name="forgotten").start()

        def test_nothing(protoserve_no_leaks):
            pass

        def test_end():
            client.close()
        """,
        passed=5,
        errors=3,
    )
    result.stdout.fnmatch_lines(
        [
            "* ERROR at teardown of test_pipe *",
            "E * left behind: descriptor * (pipe*",
            "* ERROR at teardown of test_client *",
            "E * left behind: descriptor * (socket*",
            "* ERROR at teardown of test_thread *",
            "E * left behind: thread 'forgotten'*",
        ]
    )


def test_who_does_not_use_it_does_not_pay_for_it(pytester: pytest.Pytester) -> None:
    """It is there, and protoserve is not imported: nor would coverage miss its first lines."""
    run(
        pytester,
        """
        import sys

        def test_nothing(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("protoserve")
            assert "protoserve_pytest" in sys.modules
            assert [name for name in sys.modules if name.split(".")[0] == "protoserve"] == []
        """,
        passed=1,
    )


def test_it_imports_nothing_but_pytest() -> None:
    source = (
        "import pytest, sys; before = {*sys.modules}; import protoserve_pytest; "
        "print(*sorted({*sys.modules} - before))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", source], check=True, capture_output=True, text=True
    )
    assert printed.stdout.split() == ["protoserve_pytest"]
