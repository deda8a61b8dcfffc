"""The kernel log source on files, FIFOs and a device, in health and in trouble."""

import errno
import os
import queue
import threading
import time
from pathlib import Path

import pytest

from exporter.sources.kernel_log import KernelLog
from health.vocabulary import SourceState
from tests.cannot_run import cannot_run
from tests.lab.processes import wait_until

XID = "NVRM: Xid (PCI:0000:3b:00): {code}, pid=1, name=python, text"


def bare(code):
    return XID.format(code=code) + "\n"


def record(code, sequence, prefix=3):
    return f"{prefix},{sequence},1000000,-;{XID.format(code=code)}\n"


class Followed:
    """A running source and all that it has said."""

    def __init__(self, path, **options):
        self.messages = []
        self.states = []
        self.ends = 0
        self.log = KernelLog(
            path,
            on_message=self.messages.append,
            on_state=lambda state, message: self.states.append((state, message)),
            on_caught_up=self._caught_up,
            **options,
        )
        self.log.start()

    def _caught_up(self):
        self.ends += 1

    @property
    def codes(self):
        return [message.line.code for message in self.messages]

    def await_codes(self, *codes):
        wait_until(lambda: len(self.messages) >= len(codes), 5, f"{codes}, in {self.codes}", every=0.002)
        assert self.codes == list(codes)

    def await_end(self):
        wait_until(lambda: self.ends, 5, "the end of the log", every=0.002)

    def await_state(self, state):
        return wait_until(
            lambda: next(([message] for said, message in self.states if said is state), None),
            5,
            f"{state}, in {self.states}",
            every=0.002,
        )[0]


@pytest.fixture
def follow():
    running = []

    def start(path, **options):
        running.append(Followed(path, **options))
        return running[-1]

    yield start
    for followed in running:
        assert followed.log.stop(5)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "kmsg"
    path.touch()
    return path


def append(path, text):
    with path.open("ab") as log:
        log.write(text.encode() if isinstance(text, str) else text)


def test_what_is_there_is_replayed_and_what_comes_is_followed(file, follow):
    append(file, bare(48) + "something else\n" + bare(63))
    followed = follow(file)
    followed.await_end()
    followed.await_codes(48, 63)
    append(file, bare(79))
    followed.await_codes(48, 63, 79)
    assert followed.ends == 1
    assert followed.states == [(SourceState.LIVE, "")]
    assert followed.log.counts["other"] == 1


def test_a_line_that_is_written_in_two_halves_is_one_line(file, follow):
    followed = follow(file)
    followed.await_end()
    append(file, bare(79)[:20])
    append(file, bare(79)[20:])
    followed.await_codes(79)


def test_lines_without_a_header_are_numbered_through_and_records_by_their_own_number(file, follow):
    append(file, bare(1) + "else\n" + record(2, 500) + " SUBSYSTEM=pci\n" + bare(3))
    followed = follow(file)
    followed.await_codes(1, 2, 3)
    assert [message.sequence for message in followed.messages] == [0, 500, 501]


def test_after_a_restart_a_file_is_read_again_and_no_line_taken_twice(file, follow):
    append(file, bare(48) + "else\n" + bare(63))
    first = follow(file)
    first.await_codes(48, 63)
    append(file, bare(79))
    first.await_codes(48, 63, 79)
    second = follow(file, after=first.messages[1].sequence)
    second.await_codes(79)
    assert second.log.counts["known"] == 2


def test_a_fifo_that_was_read_before_counts_on(tmp_path, follow):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    followed = follow(fifo, after=100)
    with fifo.open("w") as log:
        log.write(bare(79))
    followed.await_codes(79)
    assert followed.messages[0].sequence == 101


def test_a_fifo_outlives_its_writers(tmp_path, follow):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    followed = follow(fifo)
    followed.await_end()
    for code in (48, 63):
        with fifo.open("w") as log:
            log.write(bare(code))
    followed.await_codes(48, 63)


def test_a_writer_of_a_fifo_wakes_the_source_at_once(tmp_path, follow):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    followed = follow(fifo)
    with fifo.open("w") as log:
        for code in range(1, 21):
            log.write(bare(code))
            log.flush()
            followed.await_codes(*range(1, code + 1))


def test_a_file_that_is_cut_off_is_read_from_its_beginning(file, follow):
    append(file, bare(48) + bare(63))
    followed = follow(file)
    followed.await_codes(48, 63)
    file.write_text(bare(79))
    followed.await_codes(48, 63, 79)


def test_a_file_that_is_replaced_is_opened_anew(file, follow, tmp_path):
    append(file, bare(48))
    followed = follow(file)
    followed.await_codes(48)
    new = tmp_path / "new"
    new.write_text(bare(79))
    new.replace(file)
    followed.await_codes(48, 79)


def test_a_file_that_was_moved_away_is_followed_until_there_is_a_new_one(file, follow, tmp_path):
    followed = follow(file)
    followed.await_end()
    moved = tmp_path / "moved"
    file.rename(moved)
    append(moved, bare(48))
    followed.await_codes(48)
    file.write_text(bare(79))
    followed.await_codes(48, 79)


def test_a_log_that_is_not_there_yet_is_failed_and_then_live(tmp_path, follow):
    path = tmp_path / "later"
    followed = follow(path)
    assert followed.await_state(SourceState.FAILED) == f"{path}: No such file or directory"
    path.write_text(bare(79))
    followed.await_codes(79)
    assert followed.states[-1] == (SourceState.LIVE, "")


def test_a_file_that_fails_midway_is_read_again_and_no_line_taken_twice(file, follow):
    failures = iter([OSError(errno.EIO, "Input/output error")])

    def read(descriptor, size):
        chunk = os.read(descriptor, size)
        if not chunk and (failure := next(failures, None)):
            raise failure
        return chunk

    append(file, bare(48) + bare(63))
    followed = follow(file, read=read)
    assert followed.await_state(SourceState.FAILED) == f"{file}: Input/output error"
    append(file, bare(79))
    followed.await_codes(48, 63, 79)
    assert followed.log.counts["known"] == 2


def test_a_directory_is_no_log(tmp_path, follow):
    message = follow(tmp_path).await_state(SourceState.FAILED)
    assert message == f"{tmp_path}: neither a device nor a file nor a FIFO"


def test_garbage_of_every_kind_is_counted_and_the_next_line_taken(file, follow):
    garbage = [
        b"\xff\xfe NVRM \x00\x01",
        b"3,12,NVRM",
        b"3,9999999999999999999999999,1,-;NVRM: Xid (PCI:0000:3b:00): 79, x",
        b"NVRM: Xid (PCI:0000:3b",
        b"[12.3] NVRM: Xid (PCI:0000:3b:00): 79, with dmesg's prefix",
        b"NVRM" * 40_000,
    ]
    append(file, b"\n".join(garbage) + b"\n" + bare(79).encode())
    followed = follow(file)
    followed.await_codes(79)
    assert followed.log.counts["malformed"] == len(garbage)


def test_a_text_that_is_not_utf8_is_taken_with_replacements(file, follow):
    append(file, b"NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=\xff\xfe, text\n")
    followed = follow(file)
    followed.await_codes(79)
    assert followed.messages[0].line.process == "\ufffd\ufffd"


def test_a_spoofed_record_is_counted_and_in_a_drill_believed(file, follow):
    append(file, record(79, 1, prefix=12))
    followed = follow(file)
    followed.await_end()
    assert followed.log.counts["spoofed"] == 1
    assert followed.messages == []
    drilled = follow(file, drill=True)
    drilled.await_codes(79)
    assert drilled.messages[0].drill


def test_a_callback_that_fails_does_not_end_the_source(file):
    seen = []

    def fail_once(message):
        seen.append(message.line.code)
        if len(seen) == 1:
            raise ValueError("once")

    log = KernelLog(file, on_message=fail_once, on_state=lambda *_: None, on_caught_up=lambda: None)
    append(file, bare(48) + bare(63))
    log.start()
    wait_until(lambda: 63 in seen, 5, "the line after the failure", every=0.005)
    assert seen == [48, 63]
    assert log.stop(5)


def test_the_source_stops_at_once_while_it_waits(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer_holds = os.open(fifo, os.O_RDWR)
    log = KernelLog(fifo, on_message=print, on_state=lambda *_: None, on_caught_up=lambda: None)
    log.start()
    begun = time.monotonic()
    assert log.stop(5)
    assert time.monotonic() - begun < 0.5
    os.close(writer_holds)


class Device:
    """The reads of a kernel device, scripted; /dev/null is the character device that they stand on."""

    def __init__(self, *reads):
        self.reads = queue.SimpleQueue()
        for one in reads:
            self.reads.put(one)
        self.blocked = threading.Event()

    def __call__(self, descriptor, size):
        try:
            result = self.reads.get(timeout=0.01 if self.blocked.is_set() else 0)
        except queue.Empty:
            self.blocked.set()
            raise BlockingIOError from None
        if isinstance(result, OSError):
            raise result
        return result[:size]


DEVICE = Path(os.devnull)
EPIPE = BrokenPipeError(errno.EPIPE, "Broken pipe")
EINVAL = OSError(errno.EINVAL, "Invalid argument")


def test_one_read_of_the_device_is_one_record(follow):
    device = Device(record(48, 1).encode(), b"6,2,3,-;else\n", record(79, 3).encode() + b" KEY=value\n")
    followed = follow(DEVICE, read=device)
    followed.await_codes(48, 79)
    followed.await_end()
    assert [message.sequence for message in followed.messages] == [1, 3]


def test_overwritten_records_are_counted_by_the_gap_and_reading_goes_on(follow):
    device = Device(
        b"6,10,3,-;else\n",
        EPIPE,
        EPIPE,
        record(79, 100).encode(),
        EPIPE,
        b"6,111,3,-;else\n",
        record(48, 112).encode(),
    )
    followed = follow(DEVICE, read=device)
    followed.await_codes(79, 48)
    assert followed.log.lost == 89 + 10


def test_records_that_were_overwritten_before_the_first_read_are_not_guessed(follow):
    followed = follow(DEVICE, read=Device(EPIPE, record(79, 100).encode()))
    followed.await_codes(79)
    assert followed.log.lost == 0


def test_a_record_that_is_longer_than_the_buffer_is_passed_over(follow):
    followed = follow(DEVICE, read=Device(EINVAL, record(79, 5).encode()))
    followed.await_codes(79)
    assert followed.log.counts["malformed"] == 1


def test_a_device_that_only_refuses_is_failed_and_opened_again(follow):
    followed = follow(DEVICE, read=Device(*[EINVAL] * 17, record(79, 5).encode()))
    assert followed.await_state(SourceState.FAILED) == f"{DEVICE}: Invalid argument"
    followed.await_codes(79)


def test_a_device_that_is_opened_again_is_replayed_and_nothing_is_taken_twice(follow):
    gone = OSError(errno.ENODEV, "No such device")
    device = Device(record(48, 1).encode(), gone, record(48, 1).encode(), record(79, 2).encode())
    followed = follow(DEVICE, read=device)
    followed.await_codes(48, 79)
    assert followed.log.counts["known"] == 1


def test_the_real_kernel_log_is_read_to_its_end(follow):
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        cannot_run(f"/dev/kmsg: {error.strerror}")
    followed = follow(Path("/dev/kmsg"))
    followed.await_end()
    assert sum(followed.log.counts.values()) > 0
    assert followed.log.counts["malformed"] == 0
