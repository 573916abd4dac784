"""The memory of one process, as the kernel accounts for it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes that a process takes.

    Attributes:
        pss: its own pages, and of each shared one its share.
        private: its own pages alone.
    """

    pss: int
    private: int


def of(pid: int) -> Memory:
    """Read the memory of a process."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes = line.split()[:2]
        fields[name] = int(kilobytes) * 1024
    return Memory(fields["Pss:"], fields["Private_Clean:"] + fields["Private_Dirty:"])
