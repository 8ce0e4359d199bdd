"""Runs the tests in two processes: each takes a file of tests whenever it has ended one.

The first process finds the tests, starts the two and reports what they send, file by file, so that
pytest's options and what it prints are as ever. Nothing here is a test.
"""

import itertools
import multiprocessing
import os
import signal
import sys
from multiprocessing import connection

import pytest
import torch

PROCESSES = 2
THREADS = os.environ.get("OMP_NUM_THREADS")  # who sets it shares the machine with others
FIRST = ("test_distributed", "test_jobs", "test_terminal")  # begun last, they would be alone
SENT = [f"pytest_runtest_{name}" for name in ("logstart", "logreport", "logfinish")]
SENT += ["pytest_warning_recorded"]


def work(session, files, turns, pipe, foreign):
    """Runs files of tests, in a process of its own, and sends what pytest would report of each.

    It closes the `foreign` ends of pipes: nobody reads it once the first process has gone.
    """
    for end in foreign:
        end.close()
    plugins = session.config.pluginmanager
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()  # into files of the first process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    capture.start_global_capturing()
    capture.suspend_global_capture()
    events = []

    def note(name, _, given):
        if name in SENT:
            events.append((name, given))

    plugins.add_hookcall_monitoring(note, lambda *_: None)
    tests = (test for turn in iter(turns.get, None) for test in files[turn])
    try:
        for test, following in itertools.pairwise(itertools.chain(tests, [None])):
            test.ihook.pytest_runtest_protocol(item=test, nextitem=following)
            if session.testsfailed or following is None or following.path != test.path:
                pipe.send(events)
                events.clear()
            if session.shouldfail or session.shouldstop:
                break
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    finally:
        session._setupstate.teardown_exact(None)


def report(session, events):
    """Tells pytest, in the first process, what was sent to it; raises where tests are to stop."""
    for name, given in events:
        hook = getattr(session.config.hook, name)
        hook.call_historic(kwargs=given) if hook.is_historic() else hook(**given)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


def is_for_one(option, files):
    """Whether one process runs the tests: on a GPU, in a debugger, of a file, of one thread."""
    if option.usepdb or option.trace or option.collectonly or option.setupshow:
        return True
    if THREADS or sys.platform != "linux" or len(os.sched_getaffinity(0)) < PROCESSES:
        return True
    return option.capture == "no" or len(files) < PROCESSES or torch.cuda.is_available()


def begun(session, files):
    """The processes that run the tests of files, {pipe from it: process}."""
    context = multiprocessing.get_context("fork")
    turns, processes = context.SimpleQueue(), {}
    for turn in [*range(len(files)), *[None] * PROCESSES]:
        turns.put(turn)
    for _ in range(PROCESSES):
        ours, theirs = context.Pipe(duplex=False)
        given = session, files, turns, theirs, [*processes, ours]
        processes[ours] = context.Process(target=work, args=given)
        processes[ours].start()
        theirs.close()
    return processes


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Runs the tests; None where it leaves them to pytest."""
    files = [list(tests) for _, tests in itertools.groupby(session.items, lambda test: test.path)]
    if session.testsfailed or is_for_one(session.config.option, files):
        return None
    files.sort(key=lambda tests: tests[0].path.stem not in FIRST)
    session.config._tmp_path_factory.getbasetemp()  # one folder for all
    left = dict.fromkeys(test.nodeid for test in session.items)
    processes = begun(session, files)
    try:
        while processes:
            for pipe in connection.wait(processes):
                try:
                    events = pipe.recv()
                except EOFError:
                    processes.pop(pipe).join()
                    continue
                for name, given in events:
                    if name.endswith("logfinish"):
                        left.pop(given["nodeid"], None)
                report(session, events)
        if left:
            session.shouldfail = f"a process ended before {len(left)} tests, as {next(iter(left))}"
            raise session.Failed(session.shouldfail)
    finally:
        for process in processes.values():
            os.kill(process.pid, signal.SIGINT)
            process.join()
    return True
